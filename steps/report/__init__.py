"""What a person sees of an evaluation and of a sweep.

results     what an evaluation found, as one object
tables      figures formatted, for the page, the terminal, the model card and the sweep
style       what all plots share, and the way into a file or a page
plots       the plots of an evaluation
page        the report, one HTML file
files       everything that evaluate leaves behind
sweep_page  the trials of a sweep, one HTML file
"""
