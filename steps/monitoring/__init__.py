"""Watches a version that is served: its traces, held against its own evaluation.

In the order of use:

watched.py   the version, and its evaluation
window.py    its requests, read from traces
drift.py     are two samples of one kind?
reask.py     live prompts, asked again, of the reference too
figures.py   every figure, with its label and unit
judging.py   the gates, and what follows
page.py      what a person sees

docs/guides/monitor.md is the guide.
"""
