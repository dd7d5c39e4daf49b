"""sweep: runs the chain once for every combination of the values given, and compares the trials.
"""
