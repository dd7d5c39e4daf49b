"""Runs: where they are stored, how a step opens its own, and how it finds the runs it builds on."""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import mlflow
import psutil
from mlflow import ActiveRun, MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from steps.flow.artifacts import record_artifacts
from steps.flow.errors import StepError
from steps.flow.failures import explained
from steps.flow.files import hash_text
from steps.flow.fingerprint import FACTS, FINGERPRINT, Fingerprint, fingerprint, sources
from steps.flow.lock import one_at_a_time
from steps.flow.processes import PROCESS, close_run, closing, process_tag
from steps.flow.provenance import provenance_tags, uncommitted_changes
from steps.flow.schema import INPUTS, READS, Config, flat_dict, inputs_of
from steps.flow.secrets import remove_credentials, without_credentials, without_secrets

OUTPUT = "output."
"""The prefix of the tags by which a step hands over what it made: `output.<name>` holds a URI."""

SAMPLING_SECONDS = 2
"""Between two looks at the machine's CPU, memory, disk, network and GPU, which a step's run keeps."""

ERROR = "error"
"""The tag that says in a line why a run failed."""

RELATIVE_SQLITE = "sqlite:///"


def settle_store() -> None:
    """Make a relative `sqlite:///x.db` absolute, for this process and all it starts.

    `mlflow run <git URL>` runs in a clone: there the same relative URI names another, empty database. It is relative to
    the folder in which `mlflow run` was typed, that is, to that of a process above this one.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    path = uri.removeprefix(RELATIVE_SQLITE)
    if path == uri or path.startswith("/"):
        return
    here = Path.cwd()
    folder = next((f for f in _folders_above() if _has_run(f / path, os.environ.get("MLFLOW_RUN_ID"))), here)
    os.environ["MLFLOW_TRACKING_URI"] = f"{RELATIVE_SQLITE}{(folder / path).resolve()}"


def _folders_above() -> Iterator[Path]:
    """Yield the working folders of this process and of those above it."""
    for process in [psutil.Process(), *psutil.Process().parents()]:
        try:
            yield Path(process.cwd())
        except psutil.Error:
            return


def _has_run(database: Path, run_id: str | None) -> bool:
    if not database.is_file():
        return False
    if run_id is None:
        return True
    try:
        with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT 1 FROM runs WHERE run_uuid = ?", (run_id,)).fetchone() is not None
    except sqlite3.Error:
        return False


@dataclass(frozen=True)
class StepRun:
    """A step's own run, and the finished runs it builds on, by their keys in INPUTS."""

    run: ActiveRun
    inputs: dict[str, Run]


def one_line(error: Exception) -> str:
    """Return what *error* says in one line of at most 500 characters, secrets masked; other than ours with its type."""
    text = (str(error).strip().splitlines() or [""])[0]
    return without_secrets(text if isinstance(error, StepError) else f"{type(error).__name__}: {text}")[:500]


@contextmanager
def step_run(step: str, config: Config) -> Iterator[StepRun]:
    """Open the run of *step*: the one that MLflow made for this process, or a new one.

    Its status follows the body: FINISHED, FAILED after an error, KILLED after a signal. After the body it gets the list
    of its artifacts, and its fingerprint, by which it can be reused. Raises StepError when a run it builds on cannot be
    used.
    """
    # Explained within too: MLflow would wait for a missing server once more when it closes the run.
    with explained(), _own_run(step) as run, explained():
        mlflow.set_tags(provenance_tags(config.seed))
        remove_credentials(run.info.run_id)
        if changes := uncommitted_changes():
            mlflow.log_text(without_secrets(changes), "code.diff")
        log_new_params(run, config, READS.get(step, ("",)))
        inputs = {key: input_run(key, config) for key in inputs_of(step)}
        if step in READS:
            facts = fingerprint(step, config, inputs)
            mlflow.log_text(facts.to_json(), FACTS)
        yield StepRun(run, inputs)
        record_artifacts(run)
        if step in READS:
            _allow_reuse(step, facts)


def _allow_reuse(step: str, facts: Fingerprint) -> None:
    """Give the active run its fingerprint, unless a source was saved meanwhile: which of the two ran, nobody knows."""
    saved = [path for path, digest in sources(step).items() if facts.sources.get(path) != digest]
    if saved:
        print(f"{step} will not be reused: {', '.join(saved)} changed while it ran", flush=True)
    else:
        mlflow.set_tag(FINGERPRINT, facts.value)


@contextmanager
def _own_run(step: str) -> Iterator[ActiveRun]:
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    mlflow.set_system_metrics_sampling_interval(SAMPLING_SECONDS)
    with _opened_by_one():
        # With its tags from the first moment: a run that does not say whose it is stays RUNNING for ever.
        tags = {"step": step, PROCESS: process_tag()}
        run = mlflow.start_run(run_name=step, tags=tags, log_system_metrics=step in READS)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt):
        closing()
        status = "KILLED"
        raise
    except Exception as error:
        with suppress(MlflowException):  # a server that is away must not hide the error itself
            mlflow.set_tag(ERROR, one_line(error))
        raise
    finally:
        mlflow.end_run(status)


def close_unopened_run() -> None:
    """Mark as KILLED the run that this process was given, if it ends before it could open it: its maker may be gone."""
    run_id = os.environ.get("MLFLOW_RUN_ID")  # MLflow takes it away when it opens the run
    if run_id is None:
        return
    closing()
    with suppress(MlflowException):
        close_run(run_id)


def _opened_by_one() -> AbstractContextManager[None]:
    """Return the lock under which this process may open the store.

    Two that open a fresh database at the same moment would both set it up, and one of them would fail. A server has
    done so before it answers.
    """
    uri = mlflow.get_tracking_uri()
    return nullcontext() if uri.startswith("http") else one_at_a_time(f"store-{hash_text(uri)}")


def log_new_params(run: ActiveRun, config: Config, parts: tuple[str, ...]) -> None:
    """Log, of *config*, the keys in *parts* as parameters; `""` is all of it.

    MLflow has logged what came by -P already, quoted for a shell, and a parameter cannot change: those stay.
    """
    logged = set(MlflowClient().get_run(run.info.run_id).data.params)
    flat = {key: value for key, value in flat_dict(config).items() if key.startswith(parts)}
    mlflow.log_params({key: value for key, value in flat.items() if key not in logged and value is not None})


def set_output(name: str, value: str) -> None:
    """Hand over *value* under *name*. Call it last: a tag says that what it names is complete."""
    mlflow.set_tag(f"{OUTPUT}{name}", value)


def outputs(run: Run) -> dict[str, str]:
    """Return what *run* handed over, by name."""
    return {key.removeprefix(OUTPUT): value for key, value in run.data.tags.items() if key.startswith(OUTPUT)}


def input_run(key: str, config: Config) -> Run:
    """Return the FINISHED run that the configuration's *key*, one of INPUTS, names, and tag the active run with it.

    Raises StepError when it names none.
    """
    step, run_id = INPUTS[key], getattr(config, key)
    if not run_id:
        msg = f"no {key}: name a finished run of {step} with -P {key}=<run id>"
        raise StepError(msg)
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        store = without_credentials(mlflow.get_tracking_uri())
        msg = f"{key}={run_id} is not a run in {store}: name a finished run of {step}"
        raise StepError(msg) from error
    made_by = run.data.tags.get("step")
    if made_by != step or run.info.status != "FINISHED":
        msg = f"{key}={run_id} is a {run.info.status} run of {made_by}: name a FINISHED run of {step}"
        raise StepError(msg)
    mlflow.set_tag(key, run_id)
    return run
