"""Trials of a sweep beside each other: which are worth a look, and a page that shows it. Knows nothing of MLflow."""
