"""sweep: runs the chain once for every combination of the values that commas separate, and compares the trials.

    mlflow run . -e sweep -P build_onnx_wrapper.block_size=16,32,64 -P onnx=int4_cpu,int8_cpu

One parent run, in it a run of the chain for each trial, with its own steps. Writes `sweep.csv` and `sweep.html`, and
tags the best trial by `sweep.objective`. A trial that fails is reported and does not stop the others.

docs/guides/sweeps.md is the guide.
"""

import re
import shlex
import sys
import tempfile
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.entities import Run

from steps.config.command_line import translate
from steps.config.entry_points import Sweep as Options
from steps.config.onnx import ExecutionProvider
from steps.extras.ray_cluster import Cluster, require_shared_artifacts
from steps.flow.entry import reporting, run_through_hydra
from steps.flow.launch import launch
from steps.flow.runs import open_run
from steps.flow.typed import mlflow_run
from steps.records.errors import StepError
from steps.report.sweep_page import write_page
from steps.safety.processes import close_abandoned_runs
from steps.sweeps.plan import Plan, plan_of, unregistered, varied
from steps.sweeps.table import best_of, no_best, print_table, table_of
from steps.sweeps.trials import Place, ThisMachine, Trial, run_trials


def rerun(trial: Trial) -> str:
    """Return a shell command that runs *trial* alone."""
    given = mlflow_run("-P", f"overrides={shlex.join(trial)}")
    return given or shlex.join([Path(sys.executable).name, "-m", "steps.main", *trial])


def write_results(trials: list[Trial], table: pd.DataFrame, best: int | None, options: Options, command: str) -> None:
    """Log `sweep.csv` and `sweep.html`, and the best trial as tags and parameters, on the active run."""
    with tempfile.TemporaryDirectory() as work:
        table.to_csv(Path(work) / "sweep.csv", index=False)
        maximize = options.direction == "maximize"
        write_page(
            Path(work) / "sweep.html",
            table,
            varied(trials),
            best,
            command,
            objective=options.objective,
            maximize=maximize,
        )
        mlflow.log_artifacts(work)
    mlflow.log_metrics({"trials": len(table), "trials.finished": int((table["status"] == "FINISHED").sum())})
    if best is not None:
        # Hydra's `+key` and `~key`: MLflow allows neither sign in a name.
        chosen = {re.sub(r"^[+~]*", "best.", key): value for key, _, value in (o.partition("=") for o in trials[best])}
        mlflow.log_params(chosen)
        mlflow.log_metric(f"best.{options.objective}", float(table[options.objective].iloc[best]))
        mlflow.set_tags({"best.run_id": str(table["run_id"].iloc[best]), "best.command": command})


def run_sweep(plan: Plan, parent: Run, place: Place) -> None:
    """Run the trials of *plan* under *parent* at *place*, log and print the comparison, register the best if asked."""
    trials, options = plan.trials, plan.options
    run_as = [unregistered(trial, config) for trial, config in zip(trials, plan.configs, strict=True)]
    results = run_trials(run_as, parent, options.jobs, place)
    if any(config.plan for config in plan.configs):
        if failed := sum(result.status != "FINISHED" for result in results):
            msg = f"{failed} of {len(results)} plans could not be made: fix what is said above, and start again"
            raise StepError(msg)
        return
    table = table_of(trials, results)
    best = best_of(table, options.objective, options.direction)
    command = "" if best is None else rerun(trials[best])
    write_results(trials, table, best, options, command)
    print_table(trials, table, options.objective)
    if best is None:
        raise StepError(no_best(table, options.objective))
    print(f"\nBest by {options.objective}: trial {best + 1}. To run it again, and register it:\n  {command}")
    if options.register:
        # Only this step, so that the measured model is registered even with `reuse=false`.
        inputs = {"evaluate_run_id": str(table["evaluate_run_id"].iloc[best]), "overrides": shlex.join(trials[best])}
        result = launch("register", inputs, parent)
        if result.status != "FINISHED":
            msg = f"registering trial {best + 1} ended {result.status}: fix what it says above, and start again"
            raise StepError(msg)
        print(f"Registered:  {result.outputs['model_uri']}")


def main() -> None:
    """Check every combination of the command line, then run each."""
    with reporting("sweep"):
        overrides, flags = translate(sys.argv[1:], sweep=True)
        # `-e sweep` already means multirun: ignore the flag.
        if flags := [flag for flag in flags if flag not in ("--multirun", "-m")]:
            run_through_hydra(lambda _config, _overrides: None, [*flags, *overrides])
            return
        plan = plan_of(overrides)
        place: Place = ThisMachine()
        if plan.options.ray is not None:
            providers = {config.build_onnx_wrapper.execution_provider for config in plan.configs}
            place = Cluster(plan.options.ray, gpu=ExecutionProvider.cuda in providers)
        with open_run("sweep", plan.configs[0]) as run:
            close_abandoned_runs()
            if plan.options.ray is not None:
                require_shared_artifacts(run)
            run_sweep(plan, run, place)


if __name__ == "__main__":
    main()
