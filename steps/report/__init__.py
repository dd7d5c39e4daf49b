"""What a person sees of an evaluation and of a sweep.

results.py     what an evaluation found, as one object
tables.py      figures formatted, for the page, the terminal, the model card and the sweep
style.py       what all plots share, and the way into a file or a page
plots.py       the plots of an evaluation
page.py        the report, one HTML file
files.py       everything that evaluate leaves behind
sweep_page.py  the trials of a sweep, one HTML file
ladder.py      the recipes that onnx=auto tried: lines, a table, a plot
"""
