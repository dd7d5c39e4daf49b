"""The trials of a sweep as a table: what varies, how each went and why, what evaluate measured, which is best."""

import difflib

import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.flow.launch import StepResult
from steps.records.tags import ERROR, REUSED_FROM, VERDICT
from steps.sweeps.plan import varied
from steps.sweeps.trials import Trial


def table_of(trials: list[Trial], results: list[StepResult]) -> pd.DataFrame:
    """Return one row per trial: the values that vary, how it went and why, its runs, and evaluate's metrics."""
    keys, rows = varied(trials), []
    for trial, result in zip(trials, results, strict=True):
        values = dict(override.partition("=")[::2] for override in trial)
        rows.append({key: values[key] for key in keys} | _row(result))
    return pd.DataFrame(rows)


def _row(result: StepResult) -> dict[str, object]:
    """Return one trial's status, verdict, reason of a failure, seconds, runs and metrics."""
    steps = _steps(MlflowClient().get_run(result.run_id))
    evaluate = steps.get("evaluate")
    return {
        "status": result.status,
        "verdict": evaluate.data.tags.get(VERDICT, "") if evaluate else "",
        "reason": "" if result.status == "FINISHED" else _reason(result, steps),
        "seconds": result.seconds,
        "run_id": result.run_id,
        "evaluate_run_id": evaluate.info.run_id if evaluate else "",
        # From the step's own run, because a trial that failed its gates was measured too.
        **{k: v for k, v in (evaluate.data.metrics if evaluate else {}).items() if not k.startswith("system/")},
    }


def _steps(chain: Run) -> dict[str, Run]:
    """Return the run of each step that *chain* ran or reused, finished or not."""
    client = MlflowClient()
    below = client.search_runs([chain.info.experiment_id], f"tags.`mlflow.parentRunId` = '{chain.info.run_id}'")
    reused = {key: run_id for key, run_id in chain.data.tags.items() if key.startswith(REUSED_FROM)}
    return {run.info.run_name: run for run in below} | {
        key.removeprefix(REUSED_FROM): client.get_run(run_id) for key, run_id in reused.items()
    }


def _reason(result: StepResult, steps: dict[str, Run]) -> str:
    """Return why the chain of *result* did not finish: the error of the step that ended it, otherwise of the chain."""
    for step, run in steps.items():
        if run.info.status != "FINISHED":
            return f"{step}: {run.data.tags.get(ERROR) or _silent(run.info.status)}"
    said = MlflowClient().get_run(result.run_id).data.tags.get(ERROR)
    return said or _silent(result.status)


def _silent(status: str) -> str:
    return f"ended {status} without an error message: see the output above"


def best_of(table: pd.DataFrame, objective: str, direction: str) -> int | None:
    """Return the position of the best FINISHED trial, or None if no finished trial has the *objective*."""
    finished = table[table["status"] == "FINISHED"]
    if objective not in finished or finished[objective].dropna().empty:
        return None
    figures = finished[objective].dropna().sort_values(ascending=direction == "minimize", kind="stable")
    return list(table.index).index(figures.index[0])


def no_best(table: pd.DataFrame, objective: str) -> str:
    """Return why there is no best trial, and what to do."""
    finished = table[table["status"] == "FINISHED"]
    if finished.empty:
        return "no trial finished: fix what is said above, and start again"
    near = difflib.get_close_matches(objective, [str(column) for column in finished if "." in str(column)], n=1)
    hint = f"; did you mean {near[0]}?" if near else ": see the columns of sweep.csv"
    return f"no trial measured sweep.objective={objective}{hint} (finished steps are reused)"


def print_table(trials: list[Trial], table: pd.DataFrame, objective: str) -> None:
    """Print the trials side by side, and why those that did not finish failed."""
    shown = [*varied(trials), "status", "verdict", "seconds", objective]
    print(table[[column for column in shown if column in table]].to_string(index=False))
    failed = [(number, row) for number, row in enumerate(table.to_dict("records"), 1) if row["status"] != "FINISHED"]
    if failed:
        print(f"\n{len(failed)} of {len(table)} trials did not finish; the same command tries them again:")
    for number, row in failed:
        print(f"  trial {number} {row['status']}: {row['reason']}")
