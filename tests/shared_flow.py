"""One flow on the embedded model, run once for all tests; a test that adds to it, or harms it, has a copy."""

import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from steps.config.command_line import compose_config
from steps.config.schema import ROOT
from steps.main import main

COMMAND = ("mlflow", "run", str(ROOT), "--env-manager", "local", "-P", "register.name=capitals")

PATHS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow's database holds absolute paths, by table and column."""


@dataclass(frozen=True)
class Flow:
    """A flow that ran: the folder it was started in, which holds its store, and what it printed."""

    folder: Path
    output: str

    @property
    def store(self) -> str:
        """The URI of its store."""
        return f"sqlite:///{self.folder}/mlflow.db"

    @property
    def chain(self) -> Run:
        """The newest run of the chain."""
        return self.runs("main")[0]

    @property
    def steps(self) -> dict[str, Run]:
        """The oldest run of each step, by its name."""
        return {one.data.tags["step"]: one for one in self.runs() if one.data.tags["step"] != "main"}

    def runs(self, step: str | None = None) -> list[Run]:
        """Return all runs, or those of *step*, the newest first."""
        condition = f"tags.step = '{step}'" if step else ""
        return list(MlflowClient(self.store).search_runs(["0"], condition, order_by=["start_time DESC"]))

    def copy_to(self, folder: Path) -> "Flow":
        """Return a copy at *folder*, which must not exist: a store that names its own files."""
        shutil.copytree(self.folder, folder)
        with sqlite3.connect(folder / "mlflow.db") as database:
            for table, column in PATHS:
                change = f"UPDATE {table} SET {column} = replace({column}, ?, ?)"
                database.execute(change, (str(self.folder), str(folder)))
        return Flow(folder, self.output)


def run_chain(*overrides: str) -> None:
    """Run the chain with *overrides* in this process; its steps in theirs."""
    main(compose_config(list(overrides)), list(overrides))
