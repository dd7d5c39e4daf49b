"""How long the flow takes on the embedded model: cold, again, with one change, and each step alone.

    python -m benchmarks.flow [--repeat 3]

Run from the project's folder in the project's environment, on a machine with nothing else to do. Every figure is the
median of wall seconds over the repetitions, which take turns, so that what slows the machine slows all of them alike.
Prints a Markdown table.
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

ROOT = Path(__file__).resolve().parent.parent
INPUTS = {
    "fetch_model": {},
    "build_pipeline_wrapper": {"fetch_run_id": "fetch_model"},
    "build_onnx_wrapper": {"fetch_run_id": "fetch_model"},
    "evaluate": {"pipeline_run_id": "build_pipeline_wrapper", "onnx_run_id": "build_onnx_wrapper"},
    "register": {"evaluate_run_id": "evaluate"},
}


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


def newest(store: str, step: str) -> str:
    """Return the id of the newest run of *step* in *store*."""
    run_id: str = MlflowClient(store).search_runs(["0"], f"tags.step = '{step}'")[0].info.run_id
    return run_id


def measure(empty: Path) -> dict[str, float]:
    """Return the seconds of one repetition, each on a store of its own."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work:
        folder, store = Path(work), f"sqlite:///{work}/store.db"
        timed(store, folder, empty)  # makes the store
        figures["`mlflow run` of an empty entry point"] = timed(store, folder, empty)
        figures["flow, cold"] = timed(store, folder, ROOT)
        figures["flow, again: all reused"] = timed(store, folder, ROOT)
        figures["flow, `block_size` changed"] = timed(store, folder, ROOT, "-P", "build_onnx_wrapper.block_size=64")
    with tempfile.TemporaryDirectory() as work:
        folder, store = Path(work), f"sqlite:///{work}/store.db"
        timed(store, folder, empty)
        for step, inputs in INPUTS.items():
            parameters = [word for key, made_by in inputs.items() for word in ("-P", f"{key}={newest(store, made_by)}")]
            figures[f"{step} alone"] = timed(store, folder, ROOT, "-e", step, *parameters)
    return figures


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="how often each figure is taken (default: 3)")
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as folder:
        empty = empty_project(Path(folder))
        taken = [measure(empty) for _ in range(repeat)]
    medians = {name: statistics.median(figures[name] for figures in taken) for name in taken[0]}
    alone = statistics.median(sum(figures[f"{step} alone"] for step in INPUTS) for figures in taken)
    ratio = statistics.median(
        figures["flow, cold"] / sum(figures[f"{step} alone"] for step in INPUTS) for figures in taken
    )
    extra = medians["flow, again: all reused"] - medians["`mlflow run` of an empty entry point"]
    cpus = len(os.sched_getaffinity(0))
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {platform.machine()}, {cpus} CPUs, median of {repeat}\n")
    print("| what | seconds |\n|---|---|")
    for name, seconds in medians.items():
        print(f"| {name} | {seconds:.1f} |")
    print(f"| the five steps alone, in sum | {alone:.1f} |")
    print(f"\nFlow, cold, over its steps alone: {ratio:.2f}. Reuse of all over an empty run: {extra:.1f} s more.")


if __name__ == "__main__":
    main()
