"""Measure candidates on a task and judge the figures: plain functions over files and numbers.

Read in the order of use: `tasks` (what is asked), `asking` (how, and how long it took), `predictions` (which
answers are right, `scoring` one by one), `metrics` (the figures, with the intervals of `estimates`), `gates`
(what they decide), `plots` and `report` (how a person sees it). Nothing here knows MLflow, Hydra or a model:
a candidate is a function from request to response.
"""
