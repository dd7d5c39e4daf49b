"""Loaded candidates measured against each other: between `flow`, which loads them, and `evaluation`, which computes.

`inside` is what a candidate's process does; `candidates` says in which order, and what a failure means.
"""
