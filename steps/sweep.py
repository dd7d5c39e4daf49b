"""sweep: runs the chain once for every combination of the values given with commas, and compares the trials.

    mlflow run . -e sweep -P build_onnx_wrapper.block_size=16,32,64 -P onnx=int4_cpu,int8_cpu

One parent run; under it a chain run for each trial, with its own steps. Writes `sweep.csv` and `sweep.html`, and tags
the best trial by `sweep.objective`. A trial that fails is reported and does not stop the others.
"""

import itertools
import shlex
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pandas as pd
import psutil
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from mlflow import MlflowClient
from mlflow.entities import Run

from steps.comparison.trials import write_page
from steps.flow.command_line import compose_config, reporting, run_through_hydra, translate
from steps.flow.errors import ConfigError, StepError
from steps.flow.gates import configured_gates
from steps.flow.launch import StepResult, launch
from steps.flow.processes import close_abandoned_runs, closing
from steps.flow.schema import STEPS
from steps.flow.tracking import step_run

Trial = tuple[str, ...]
"""The overrides of one run of the chain."""


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
        choices.append(
            [f"{key}={value}" for value in override.sweep_string_iterator()] if override.is_sweep_override() else [line]
        )
    return list(itertools.product(*choices))


def varied(trials: list[Trial]) -> list[str]:
    """Return the keys whose value differs between *trials*."""
    return [column[0].partition("=")[0] for column in zip(*trials, strict=True) if len(set(column)) > 1]


def run_trials(trials: list[Trial], parent: Run, jobs: int) -> list[StepResult]:
    """Run the chain for each of *trials* under *parent*, *jobs* at a time, without registering; return how they went.

    What two trials share is made once: the later one waits for it.
    """
    steps = f"steps=[{','.join(step for step in STEPS if step != 'register')}]"

    def run(number: int, trial: Trial) -> StepResult:
        print(f"trial {number}/{len(trials)}: {shlex.join(trial)}", flush=True)
        result = launch("main", {"overrides": shlex.join([*trial, steps])}, parent)
        print(f"trial {number}/{len(trials)}: {result.status}, {result.seconds:.1f} s\n", flush=True)
        return result

    pool = ThreadPoolExecutor(jobs)
    try:
        return list(pool.map(run, range(1, len(trials) + 1), trials))
    except BaseException:
        # Signals reach this thread alone; those that wait for a trial go on until it has ended.
        closing()
        pool.shutdown(wait=False, cancel_futures=True)
        for trial in psutil.Process().children():
            trial.terminate()
        raise


def table_of(trials: list[Trial], results: list[StepResult]) -> pd.DataFrame:
    """Return a row for each trial: the values that vary, status, seconds, run, and every metric of its chain."""
    keys, rows = varied(trials), []
    for trial, result in zip(trials, results, strict=True):
        values = dict(override.partition("=")[::2] for override in trial)
        metrics = MlflowClient().get_run(result.run_id).data.metrics
        own = {"status": result.status, "seconds": result.seconds, "run_id": result.run_id}
        rows.append({key: values[key] for key in keys} | own | metrics)
    return pd.DataFrame(rows)


def best_of(table: pd.DataFrame, objective: str, direction: str) -> int | None:
    """Return the position of the best FINISHED trial, or None when none finished with the *objective*."""
    finished = table[table["status"] == "FINISHED"]
    if objective not in finished or finished[objective].dropna().empty:
        return None
    figures = finished[objective].dropna().sort_values(ascending=direction == "minimize", kind="stable")
    return list(table.index).index(figures.index[0])


def write_results(trials: list[Trial], table: pd.DataFrame, best: int | None, command: str) -> None:
    """Log `sweep.csv` and `sweep.html`, and the best trial as tags and parameters, on the active run."""
    with tempfile.TemporaryDirectory() as work:
        table.to_csv(Path(work) / "sweep.csv", index=False)
        write_page(Path(work) / "sweep.html", table, varied(trials), best, command)
        mlflow.log_artifacts(work)
    if best is not None:
        chosen = {f"best.{key}": value for key, _, value in (override.partition("=") for override in trials[best])}
        mlflow.log_params(chosen)
        mlflow.set_tags({"best.run_id": str(table["run_id"][best]), "best.command": command})


def main() -> None:
    """Check every combination on the command line, then try each."""
    with reporting("sweep"):
        overrides, flags = translate(sys.argv[1:], sweep=True)
        if flags:
            run_through_hydra(lambda _config, _overrides: None, [*flags, *overrides])
            return
        trials = trials_of(overrides)
        configs = [compose_config(list(trial)) for trial in trials]
        for config in configs:
            configured_gates(config)
        options = configs[0].sweep
        with step_run("sweep", configs[0]) as sweep:
            for run in close_abandoned_runs():
                print(f"run {run.info.run_id} ({run.data.tags.get('step')}) was abandoned: marked KILLED")
            table = table_of(trials, run_trials(trials, sweep.run, options.jobs))
            best = best_of(table, options.objective, options.direction)
            command = "" if best is None else f"mlflow run . -P overrides={shlex.quote(shlex.join(trials[best]))}"
            write_results(trials, table, best, command)
            shown = [*varied(trials), "status", "seconds", options.objective]
            print(table[[column for column in shown if column in table]].to_string(index=False))
            if best is None:
                msg = f"no trial finished with a figure for sweep.objective={options.objective}: see sweep.html"
                raise StepError(msg)
            print(f"\nBest by {options.objective}: trial {best + 1}. To run it again, and register it:\n  {command}")
            if options.register:
                result = launch("main", {"overrides": shlex.join(trials[best])}, sweep.run)
                if result.status != "FINISHED":
                    msg = (
                        f"registering trial {best + 1} ended {result.status}: mend what it says above, and start again"
                    )
                    raise StepError(msg)


if __name__ == "__main__":
    main()
