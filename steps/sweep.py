"""sweep: runs the chain once for every combination of the values given with commas, and compares the trials.

    mlflow run . -e sweep -P build_onnx_wrapper.block_size=16,32,64 -P onnx=int4_cpu,int8_cpu

One parent run; under it a chain run for each trial, with its own steps. Writes `sweep.csv`, and tags the best trial by
`sweep.objective`. A trial that fails is reported and does not stop the others.
"""

import itertools
import shlex
import sys
import tempfile
from pathlib import Path

import mlflow
import pandas as pd
from hydra.core.override_parser.overrides_parser import OverridesParser
from mlflow import MlflowClient

from steps.flow.command_line import compose_config, reporting, translate
from steps.flow.errors import StepError
from steps.flow.gates import configured_gates
from steps.flow.launch import StepResult, launch
from steps.flow.schema import STEPS
from steps.flow.tracking import step_run

Trial = tuple[str, ...]
"""The overrides of one run of the chain."""


def trials_of(overrides: list[str]) -> list[Trial]:
    """Return every combination of the values in *overrides*, as Hydra's own sweeper counts them."""
    choices = []
    for override in OverridesParser.create().parse_overrides(overrides):
        line = str(override.input_line)
        key = line.partition("=")[0]
        choices.append(
            [f"{key}={value}" for value in override.sweep_string_iterator()] if override.is_sweep_override() else [line]
        )
    return list(itertools.product(*choices))


def varied(trials: list[Trial]) -> list[str]:
    """Return the keys whose value differs between *trials*."""
    return [column[0].partition("=")[0] for column in zip(*trials, strict=True) if len(set(column)) > 1]


def run_trials(trials: list[Trial]) -> list[StepResult]:
    """Run the chain for each of *trials*, without registering, under the active run; return how they went."""
    steps = f"steps=[{','.join(step for step in STEPS if step != 'register')}]"
    results = []
    for number, trial in enumerate(trials, start=1):
        print(f"trial {number}/{len(trials)}: {shlex.join(trial)}", flush=True)
        result = launch("main", {"overrides": shlex.join([*trial, steps])})
        print(f"trial {number}/{len(trials)}: {result.status}, {result.seconds:.1f} s\n", flush=True)
        results.append(result)
    return results


def table_of(trials: list[Trial], results: list[StepResult]) -> pd.DataFrame:
    """Return a row for each trial: the values that vary, status, seconds, run, and every metric of its chain."""
    keys, rows = varied(trials), []
    for trial, result in zip(trials, results, strict=True):
        values = dict(override.partition("=")[::2] for override in trial)
        metrics = MlflowClient().get_run(result.run_id).data.metrics
        own = {"status": result.status, "seconds": result.seconds, "run_id": result.run_id}
        rows.append({key: values[key] for key in keys} | own | metrics)
    return pd.DataFrame(rows)


def best_of(table: pd.DataFrame, objective: str, direction: str) -> int:
    """Return the position of the best FINISHED trial. Raises StepError when none finished with the *objective*."""
    finished = table[table["status"] == "FINISHED"]
    if objective not in finished or finished[objective].dropna().empty:
        msg = (
            f"no trial finished with a figure for sweep.objective={objective}: see the status and metrics in sweep.csv"
        )
        raise StepError(msg)
    figures = finished[objective].dropna().sort_values(ascending=direction == "minimize", kind="stable")
    return list(table.index).index(figures.index[0])


def main() -> None:
    """Check every combination on the command line, then try each."""
    with reporting("sweep"):
        overrides, _flags = translate(sys.argv[1:], sweep=True)
        trials = trials_of(overrides)
        configs = [compose_config(list(trial)) for trial in trials]
        for config in configs:
            configured_gates(config)
        options = configs[0].sweep
        with step_run("sweep", configs[0]):
            results = run_trials(trials)
            table = table_of(trials, results)
            with tempfile.TemporaryDirectory() as work:
                table.to_csv(Path(work) / "sweep.csv", index=False)
                mlflow.log_artifacts(work)
            best = best_of(table, options.objective, options.direction)
            command = f"mlflow run . -P overrides={shlex.quote(shlex.join(trials[best]))}"
            mlflow.set_tags(
                {
                    "best.run_id": results[best].run_id,
                    "best.overrides": shlex.join(trials[best]),
                    "best.command": command,
                }
            )
            shown = [*varied(trials), "status", "seconds", options.objective]
            print(table[[column for column in shown if column in table]].to_string(index=False))
            print(f"\nBest by {options.objective}: trial {best + 1}. To run it again, and register it:\n  {command}")


if __name__ == "__main__":
    main()
