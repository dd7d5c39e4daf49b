"""Searches in the whole tracking store, however much it holds: MLflow's client answers with one page of 1,000."""

import mlflow
from mlflow.entities import Run


def runs_in_store(condition: str, most: int) -> list[Run]:
    """Return the runs of all experiments that match *condition*, those that ended last first, *most* at most."""
    experiments = [experiment.experiment_id for experiment in mlflow.search_experiments()]
    newest = ["attributes.end_time DESC"]
    found = mlflow.search_runs(experiments, condition, max_results=most, order_by=newest, output_format="list")
    assert isinstance(found, list)
    return found
