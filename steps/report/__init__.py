"""What a person sees of an evaluation or a sweep.

results      the files that an evaluation leaves: predictions, gates, tables, plots, page
page         the report of an evaluation, one HTML file
plots        the plots of an evaluation
style        colours and fonts that all plots share
sweep_page   the page of a sweep: quality, speed and size of its trials
"""
