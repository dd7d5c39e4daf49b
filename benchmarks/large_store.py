"""What a flow with nothing changed costs on a tracking server that holds much already.

    python -m benchmarks.large_store [--rounds 5] [--sizes 10000 40000]

A real `mlflow server` over SQLite has one flow on the embedded model. Copies of its store are filled: for every 20 runs
one registered model with four versions, all of them copies of that flow's own, in 20 experiments; one flow in a hundred
never ended. Each store has a server of its own, and `mlflow run .` on them takes turns. Prints a Markdown table.
"""

import argparse
import shutil
import sqlite3
import statistics
import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

from benchmarks.flow import timed
from benchmarks.report import in_turns, machine, ratio
from steps.config.schema import ROOT
from tests.servers import mlflow_server

EXPERIMENTS, RUNS_PER_MODEL, VERSIONS_PER_MODEL, FLOWS_PER_RUNNING = 20, 20, 4, 100
DATA = ("tags", "params", "metrics", "latest_metrics")
"""The tables with what belongs to a run."""

COUNTED = ("runs", *DATA, "logged_models", "registered_models", "model_versions")


def fill(database: Path, runs: int) -> None:
    """Copy the one flow in *database* until it holds at least *runs* runs; models and versions in proportion."""
    with sqlite3.connect(database) as store:
        flow = [run_id for (run_id,) in store.execute("SELECT run_uuid FROM runs ORDER BY start_time")]
        copies = -(-runs // len(flow)) - 1
        _insert(store, "experiments", {"experiment_id": "new", "name": "new"}, "row.experiment_id = 0", EXPERIMENTS)
        store.execute("CREATE TEMP TABLE copied (old TEXT, new TEXT, copy INT)")
        store.executemany(
            "INSERT INTO copied VALUES (?, lower(hex(randomblob(16))), ?)",
            ((run_id, copy) for copy in range(1, copies + 1) for run_id in flow),
        )
        store.execute("CREATE INDEX copied_old ON copied (old)")
        experiment = f"1 + copied.copy % {EXPERIMENTS}"
        never_ended = f"CASE WHEN copied.copy % {FLOWS_PER_RUNNING} = 0 THEN 'RUNNING' ELSE row.status END"
        earlier = {time: f"row.{time} - 60000 * copied.copy" for time in ("start_time", "end_time")}
        _copy(store, "runs", {"run_uuid": "copied.new", "experiment_id": experiment, "status": never_ended} | earlier)
        other = """CASE row.key WHEN 'step.fingerprint' THEN lower(hex(randomblob(32)))
            WHEN 'process' THEN 'another-machine' || substr(row.value, instr(row.value, ' ')) ELSE row.value END"""
        for table in DATA:
            _copy(store, table, {"run_uuid": "copied.new"} | ({"value": other} if table == "tags" else {}))
        model = {"model_id": "'m-' || lower(hex(randomblob(16)))", "experiment_id": experiment}
        _copy(store, "logged_models", model | {"source_run_id": "copied.new"}, "source_run_id")
        models = runs // RUNS_PER_MODEL
        _insert(store, "registered_models", {"name": "row.name || '-' || new"}, "true", models)
        for table in ("model_versions", "model_version_tags"):
            # The flow registers two versions.
            for first in range(1, VERSIONS_PER_MODEL, 2):
                changed = {"name": "row.name || '-' || new", "version": f"row.version + {first - 1}"}
                _insert(store, table, changed, "row.name NOT LIKE '%-%'", models)


def _copy(store: sqlite3.Connection, table: str, changed: dict[str, str], key: str = "run_uuid") -> None:
    """Insert a copy of every row of *table* that belongs to a copied run; *changed*: SQL by column."""
    _select(store, table, changed, f"JOIN copied ON row.{key} = copied.old")


def _insert(store: sqlite3.Connection, table: str, changed: dict[str, str], where: str, times: int) -> None:
    """Insert *times* copies of the rows of *table* that fit *where*; in *changed*, `new` counts them from 1."""
    numbers = (
        f"WITH RECURSIVE n(new) AS (SELECT 1 UNION ALL SELECT new + 1 FROM n WHERE new < {times}) SELECT new FROM n"
    )
    _select(store, table, changed, f"JOIN ({numbers}) WHERE {where}")


def _select(store: sqlite3.Connection, table: str, changed: dict[str, str], rest: str) -> None:
    columns = [column for _, column, *_ in store.execute(f"PRAGMA table_info({table})")]
    values = ", ".join(changed.get(column, f"row.{column}") for column in columns)
    store.execute(f"INSERT INTO {table} ({', '.join(columns)}) SELECT {values} FROM {table} AS row {rest}")


def counts(database: Path) -> dict[str, int]:
    """Return how many rows each table of *database* has."""
    with sqlite3.connect(database) as store:
        return {table: store.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in COUNTED}


def main(rounds: int, sizes: Iterable[int]) -> None:
    """Measure, and print the table."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        work = Path(folder)
        first = work / "0"
        first.mkdir()
        with server(first) as url:
            timed(url, work, ROOT)
        takers, held = {}, {}
        for size in (0, *sizes):
            if size:
                shutil.copytree(first, work / str(size))
                fill(work / str(size) / "store.db", size)
            url = stack.enter_context(server(work / str(size)))
            held[f"{size}"] = counts(work / str(size) / "store.db")
            takers[f"{size}"] = partial(timed, url, work, ROOT)
        figures = in_turns(rounds, takers)
        print(f"{machine()}, SQLite, median of {rounds} rounds\n")
        print("| runs | tags, parameters, metrics | models | versions | seconds | ratio |\n|---|---|---|---|---|---|")
        for name, seconds in figures.items():
            rows = held[name]
            share = f"{ratio(figures, name, '0'):.2f}"
            data = sum(rows[table] for table in DATA)
            cells = (rows["runs"], data, rows["registered_models"], rows["model_versions"])
            told = " | ".join(f"{number:,}" for number in cells)
            print(f"| {told} | {statistics.median(seconds):.1f} | {share} |")


def server(folder: Path) -> AbstractContextManager[str]:
    """Serve the store in *folder*; yield its URL."""
    quiet = ("--uvicorn-opts", "--log-level warning")
    return mlflow_server(folder, "--artifacts-destination", str(folder / "artifacts"), *quiet)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each figure is taken (default: 5)")
    parser.add_argument("--sizes", type=int, nargs="*", default=[10_000, 40_000], help="runs in the filled stores")
    options = parser.parse_args()
    main(options.rounds, options.sizes)
