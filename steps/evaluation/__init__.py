"""Measure candidates on a task, and judge the figures: plain functions over texts and numbers.

In the order of use:

tasks        the questions, from JSON Lines
asking       ask a candidate, one question at a time or several together
choices      multiple choice by likelihood
scoring      is one answer right?
predictions  all answers side by side; area `task`
contract     does a candidate do what its signature says? area `contract`
integrity    was everything answered, with the right token ids? area `integrity`
fidelity     are a build's probabilities the reference's? area `fidelity`
cost         how fast, how large? area `cost`
statistics   intervals
metrics      all figures together, with their labels and units
gates        the limits that decide

Nothing here knows MLflow, Hydra or a model: a candidate is a function from request to response.
"""
