"""How long the flow takes on the embedded model: cold, again, with one change, and where the time of each step goes.

    python -m benchmarks.flow [--repeat 3]

Run from the project's folder in the project's environment, on a machine with nothing else to do. Every figure is the
median of wall seconds over the repetitions, which take turns, so that what slows the machine slows all of them alike.
Prints two Markdown tables. In the second, `work` is the step's own function (it logs its model, too), `imports` what
Python takes to import the step, and `MLflow` the rest: the run, its tags, the list of its artifacts, the fingerprint.
"""

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlflow import MlflowClient

from steps.config.schema import STEPS
from steps.flow.runs import WORK_SECONDS

ROOT = Path(__file__).resolve().parent.parent


def timed(store: str, folder: Path, project: Path, *arguments: str) -> float:
    """Return the wall seconds of `mlflow run project arguments` in *folder*; ends the program if it fails."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"MLFLOW_TRACKING_URI": store, "PATH": path}
    command = ["mlflow", "run", str(project), "--env-manager", "local", *arguments]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - started


def empty_project(folder: Path) -> Path:
    """Return a project whose entry point does nothing: what `mlflow run` itself costs."""
    (folder / "MLproject").write_text("name: empty\nentry_points:\n  main:\n    command: 'true'\n")
    return folder


def importing(step: str) -> float:
    """Return the wall seconds that a process takes to start and import *step* and what runs it."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import steps.flow.entry, steps.{step}"], cwd=ROOT, check=True)
    return time.perf_counter() - started


def parts(store: str, step: str) -> dict[str, float]:
    """Return where the seconds of the newest run of *step* in *store* went."""
    run = MlflowClient(store).search_runs(["0"], f"tags.step = '{step}'")[0]
    whole, work = (run.info.end_time - run.info.start_time) / 1000, run.data.metrics[WORK_SECONDS]
    imports = importing(step)
    return {"imports": imports, "MLflow": whole - work - imports, "work": work, "whole": whole}


def measure(empty: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Return the seconds of one repetition on a store of its own, and those of the cold flow's steps by part."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work:
        folder, store = Path(work), f"sqlite:///{work}/store.db"
        timed(store, folder, empty)  # makes the store
        figures["`mlflow run` of an empty entry point"] = timed(store, folder, empty)
        # One after the other, so that the parts of each step are its own.
        figures["flow, cold, `flow.jobs=1`"] = timed(store, folder, ROOT, "-P", "flow.jobs=1")
        steps = {step: parts(store, step) for step in STEPS}
    with tempfile.TemporaryDirectory() as work:
        folder, store = Path(work), f"sqlite:///{work}/store.db"
        timed(store, folder, empty)
        figures["flow, cold"] = timed(store, folder, ROOT)
        figures["flow, again: all reused"] = timed(store, folder, ROOT)
        figures["flow, `block_size` changed"] = timed(store, folder, ROOT, "-P", "build_onnx_wrapper.block_size=64")
    return figures, steps


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="how often each figure is taken (default: 3)")
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as folder:
        empty = empty_project(Path(folder))
        taken = [measure(empty) for _ in range(repeat)]
    medians = {name: statistics.median(figures[name] for figures, _ in taken) for name in taken[0][0]}
    extra = medians["flow, again: all reused"] - medians["`mlflow run` of an empty entry point"]
    cpus = len(os.sched_getaffinity(0))
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {platform.machine()}, {cpus} CPUs, median of {repeat}\n")
    print("| what | seconds |\n|---|---|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.1f} |")
    print(f"| reuse of all, over an empty entry point | {extra:.1f} |")
    print("\n| step | imports | MLflow | work | whole |\n|---|---|---|---|---|")
    for step in STEPS:
        row = [statistics.median(steps[step][part] for _, steps in taken) for part in taken[0][1][step]]
        print(f"| {step} | {' | '.join(f'{seconds:.1f}' for seconds in row)} |")


if __name__ == "__main__":
    main()
