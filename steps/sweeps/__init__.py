"""A sweep: one run of the chain for each combination of values.

plan.py    the combinations, each checked before the first trial starts
trials.py  runs the trials, some at a time
table.py   how the trials compare, and which is best
"""
