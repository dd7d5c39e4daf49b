"""Measure candidates on a task, and judge the figures: plain functions over texts and numbers.

In the order of use:

tasks.py        the questions, from JSON Lines
asking.py       ask a candidate, one question at a time or several together
choices.py      multiple choice by likelihood
scoring.py      is one answer right?
predictions.py  all answers side by side; area `task`
contract.py     does a candidate do what its signature says? area `contract`
integrity.py    was everything answered, with the right token ids? area `integrity`
fidelity.py     are a build's probabilities the reference's? area `fidelity`
cost.py         how fast, how large? area `cost`
statistics.py   intervals
metrics.py      all figures together, with their labels and units
gates.py        the limits that decide

Nothing here knows MLflow, Hydra or a model: a candidate is a function from request to response.
"""
