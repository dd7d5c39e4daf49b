"""What a person sees of an evaluation or a sweep.

results.py     the files that an evaluation leaves: predictions, gates, tables, plots, page
page.py        the report of an evaluation, one HTML file
plots.py       the plots of an evaluation
style.py       colours and fonts that all plots share
sweep_page.py  the page of a sweep: quality, speed and size of its trials
"""
