"""sweep: runs the chain once for every combination of the values given with commas, and compares the trials.

    mlflow run . -e sweep -P build_onnx_wrapper.block_size=16,32,64 -P onnx=int4_cpu,int8_cpu

One parent run; under it a chain run for each trial, with its own steps. Writes `sweep.csv` and `sweep.html`, and tags
the best trial by `sweep.objective`. A trial that fails is reported and does not stop the others. See docs/sweeps.md.
"""

import difflib
import itertools
import re
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.comparison.trials import write_page
from steps.flow.cluster import Cluster, require_shared_artifacts
from steps.flow.command_line import compose_config, reporting, run_through_hydra, translate
from steps.flow.errors import ConfigError, StepError
from steps.flow.gates import configured_gates
from steps.flow.launch import StepResult, launch
from steps.flow.processes import close_abandoned_runs
from steps.flow.schema import Config, ExecutionProvider
from steps.flow.schema import Sweep as Options
from steps.flow.task import read_examples
from steps.flow.tracking import ERROR, step_run
from steps.flow.trials import Place, ThisMachine, Trial, run_trials
from steps.flow.typed_command import command_for


@dataclass(frozen=True)
class Plan:
    """What a sweep is to do: each trial with its configuration, and the options that all of them share."""

    trials: list[Trial]
    configs: list[Config]
    options: Options


def plan_of(overrides: list[str]) -> Plan:
    """Return the sweep that *overrides* describe. Raises ConfigError for the first combination that cannot be used."""
    own = [override for override in overrides if override.startswith("sweep.")]
    trials = trials_of([override for override in overrides if override not in own])
    configs = [compose_config([*trial, *own]) for trial in trials]
    for config in configs:
        configured_gates(config)
        read_examples(config.evaluate)
        if "evaluate" not in config.steps:
            msg = f"steps={config.steps} cannot be used in a sweep: add evaluate, which measures sweep.objective"
            raise ConfigError(msg)
    return Plan(trials, configs, configs[0].sweep)


def trials_of(overrides: list[str]) -> list[Trial]:
    """Return every combination of the values in *overrides*, as Hydra's own sweeper counts them. Raises ConfigError."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        msg = f"{shlex.join(overrides)} cannot be read: {str(error).splitlines()[0]}; write KEY=VALUE,VALUE"
        raise ConfigError(msg) from error
    choices = []
    for override in parsed:
        line = str(override.input_line)
        key = line.partition("=")[0]
        choices.append([f"{key}={value}" for value in values_of(override)] if override.is_sweep_override() else [line])
    return list(itertools.product(*choices))


def values_of(override: Override) -> list[str]:
    """Return the values to try that *override* names. Raises ConfigError for what has no end or no list: interval()."""
    try:
        return list(override.sweep_string_iterator())
    except HydraException as error:
        msg = f"{override.input_line} cannot be tried one by one: {str(error).splitlines()[0]}; write KEY=VALUE,VALUE"
        raise ConfigError(msg) from error


def varied(trials: list[Trial]) -> list[str]:
    """Return the keys whose value differs between *trials*."""
    return [column[0].partition("=")[0] for column in zip(*trials, strict=True) if len(set(column)) > 1]


def unregistered(trial: Trial, config: Config) -> Trial:
    """Return *trial*, whose configuration is *config*, without the step `register`."""
    return (*trial, f"steps=[{','.join(step for step in config.steps if step != 'register')}]")


def table_of(trials: list[Trial], results: list[StepResult]) -> pd.DataFrame:
    """Return a row for each trial: the values that vary, how it went and why, its runs, and what evaluate measured."""
    keys, rows = varied(trials), []
    for trial, result in zip(trials, results, strict=True):
        values = dict(override.partition("=")[::2] for override in trial)
        rows.append({key: values[key] for key in keys} | _row(result))
    return pd.DataFrame(rows)


def _row(result: StepResult) -> dict[str, object]:
    """Return of one trial: status, verdict of its gates, reason of a failure, seconds, runs, and metrics."""
    steps = _steps(MlflowClient().get_run(result.run_id))
    evaluate = steps.get("evaluate")
    return {
        "status": result.status,
        "verdict": evaluate.data.tags.get("verdict", "") if evaluate else "",
        "reason": "" if result.status == "FINISHED" else _reason(result, steps),
        "seconds": result.seconds,
        "run_id": result.run_id,
        "evaluate_run_id": evaluate.info.run_id if evaluate else "",
        # From the step's own run: a trial that fails its gates was measured too.
        **{k: v for k, v in (evaluate.data.metrics if evaluate else {}).items() if not k.startswith("system/")},
    }


def _steps(chain: Run) -> dict[str, Run]:
    """Return the run of each step that *chain* ran or reused, whatever became of it."""
    client = MlflowClient()
    below = client.search_runs([chain.info.experiment_id], f"tags.`mlflow.parentRunId` = '{chain.info.run_id}'")
    reused = {key: run_id for key, run_id in chain.data.tags.items() if key.startswith("reused_from.")}
    return {run.info.run_name: run for run in below} | {
        key.removeprefix("reused_from."): client.get_run(run_id) for key, run_id in reused.items()
    }


def _reason(result: StepResult, steps: dict[str, Run]) -> str:
    """Return why the chain of *result* did not finish: what the step that ended it said, or else the chain."""
    for step, run in steps.items():
        if run.info.status != "FINISHED":
            return (
                f"{step}: {run.data.tags.get(ERROR, f'ended {run.info.status} without a word: see the output above')}"
            )
    said = MlflowClient().get_run(result.run_id).data.tags.get(ERROR)
    return said or f"ended {result.status} without a word: see the output above"


def best_of(table: pd.DataFrame, objective: str, direction: str) -> int | None:
    """Return the position of the best FINISHED trial, or None when none finished with the *objective*."""
    finished = table[table["status"] == "FINISHED"]
    if objective not in finished or finished[objective].dropna().empty:
        return None
    figures = finished[objective].dropna().sort_values(ascending=direction == "minimize", kind="stable")
    return list(table.index).index(figures.index[0])


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
        # `+key` and `~key` are Hydra's; MLflow takes neither sign in a name.
        chosen = {re.sub(r"^[+~]*", "best.", key): value for key, _, value in (o.partition("=") for o in trials[best])}
        mlflow.log_params(chosen)
        mlflow.log_metric(f"best.{options.objective}", float(table[options.objective].iloc[best]))
        mlflow.set_tags({"best.run_id": str(table["run_id"].iloc[best]), "best.command": command})


def report(trials: list[Trial], table: pd.DataFrame, objective: str) -> None:
    """Print the trials side by side, and of each that did not finish why."""
    shown = [*varied(trials), "status", "verdict", "seconds", objective]
    print(table[[column for column in shown if column in table]].to_string(index=False))
    failed = [(number, row) for number, row in enumerate(table.to_dict("records"), 1) if row["status"] != "FINISHED"]
    if failed:
        print(f"\n{len(failed)} of {len(table)} trials did not finish; the same command tries them again:")
    for number, row in failed:
        print(f"  trial {number} {row['status']}: {row['reason']}")


def no_best(table: pd.DataFrame, objective: str) -> str:
    """Return why there is no best trial, and what to do."""
    finished = table[table["status"] == "FINISHED"]
    if finished.empty:
        return "no trial finished: mend what is said above, and start again"
    near = difflib.get_close_matches(objective, [str(column) for column in finished if "." in str(column)], n=1)
    hint = f"; did you mean {near[0]}?" if near else ": see the columns of sweep.csv"
    return f"no trial measured sweep.objective={objective}{hint} (what finished is reused)"


def run_sweep(plan: Plan, parent: Run, place: Place) -> None:
    """Run the trials of *plan* under *parent* at *place*; log and print how they compare; register the best if told."""
    trials, options = plan.trials, plan.options
    run_as = [unregistered(trial, config) for trial, config in zip(trials, plan.configs, strict=True)]
    results = run_trials(run_as, parent, options.jobs, place)
    if any(config.plan for config in plan.configs):
        if failed := sum(result.status != "FINISHED" for result in results):
            msg = f"{failed} of {len(results)} plans could not be made: mend what is said above, and start again"
            raise StepError(msg)
        return
    table = table_of(trials, results)
    best = best_of(table, options.objective, options.direction)
    command = "" if best is None else command_for(trials[best])
    write_results(trials, table, best, options, command)
    report(trials, table, options.objective)
    if best is None:
        raise StepError(no_best(table, options.objective))
    print(f"\nBest by {options.objective}: trial {best + 1}. To run it again, and register it:\n  {command}")
    if options.register:
        # The step alone: what is registered is what was measured, whatever `reuse` says.
        inputs = {"evaluate_run_id": str(table["evaluate_run_id"].iloc[best]), "overrides": shlex.join(trials[best])}
        result = launch("register", inputs, parent)
        if result.status != "FINISHED":
            msg = f"registering trial {best + 1} ended {result.status}: mend what it says above, and start again"
            raise StepError(msg)
        print(f"Registered:  {result.outputs['model_uri']}")


def main() -> None:
    """Check every combination on the command line, then try each."""
    with reporting("sweep"):
        overrides, flags = translate(sys.argv[1:], sweep=True)
        # A sweep is what it is without them.
        if flags := [flag for flag in flags if flag not in ("--multirun", "-m")]:
            run_through_hydra(lambda _config, _overrides: None, [*flags, *overrides])
            return
        plan = plan_of(overrides)
        place: Place = ThisMachine()
        if plan.options.ray is not None:
            providers = {config.build_onnx_wrapper.execution_provider for config in plan.configs}
            place = Cluster(plan.options.ray, gpu=ExecutionProvider.cuda in providers)
        with step_run("sweep", plan.configs[0]) as sweep:
            close_abandoned_runs()
            if plan.options.ray is not None:
                require_shared_artifacts(sweep.run)
            run_sweep(plan, sweep.run, place)


if __name__ == "__main__":
    main()
