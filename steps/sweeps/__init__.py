"""The trials of a sweep: planned, run, compared.

plan     the trials, each checked before the first starts
trials   run them, some at a time, each as a chain of its own
table    how they compare, and which is best
rerun    the command that runs the best again
"""
