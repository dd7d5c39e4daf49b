"""Runs a step: opens its run, finds the runs that it builds on, calls it, and writes its outputs last."""

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress

import mlflow
from mlflow import ActiveRun, MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from steps.config.schema import STEPS, Config
from steps.config.values import flat_dict
from steps.flow.fingerprint import FACTS, Fingerprint, fingerprint, sources
from steps.flow.provenance import provenance_tags, uncommitted_changes
from steps.flow.room import require_memory_for
from steps.records.artifacts import record_artifacts
from steps.records.errors import StepError, one_line
from steps.records.files import hash_text
from steps.records.step import Inputs, Outputs
from steps.records.tags import DIGEST, ERROR, FINGERPRINT, OUTPUT, PROCESS, STEP
from steps.safety.artifact_root import require_usable_artifacts
from steps.safety.lock import one_at_a_time
from steps.safety.outages import explained
from steps.safety.processes import close_below, closing, process_tag
from steps.safety.secrets import remove_credentials, without_credentials, without_secrets
from steps.safety.store_check import is_checked, mark_checked, require_usable_server

SAMPLING_SECONDS = 2
"""How often a step's run records CPU, memory, disk, network and GPU."""

WORK_SECONDS = "seconds.work"
"""The metric of a step's run: how long its function took. The rest of the run's time is imports and MLflow."""

StepFunction = Callable[[Config, Inputs], Outputs]
"""The function `run` of a step's module."""


def run_step(step: str, run: StepFunction, config: Config) -> None:
    """Call *run*, the function of *step*, in a run of its own, on the runs that *config* names.

    Outputs, digest and fingerprint are tagged in one call, after everything else: what they name is complete. Raises
    StepError if a run that *step* builds on cannot be used.
    """
    name = run_name(step, config)
    with open_run(name, config):
        if name != step:  # it builds on no run, and must not be reused
            run(config, {})
            return
        inputs = {made_by: input_run(made_by, config) for made_by in STEPS[step].builds_on}
        facts = fingerprint(step, config, inputs)
        mlflow.log_text(facts.to_json(), FACTS)
        begun = time.monotonic()
        outputs = run(config, inputs)
        mlflow.log_metric(WORK_SECONDS, time.monotonic() - begun)
        assert outputs.uris.keys() == set(STEPS[step].hands_over)
        log_artifact_list()
        tags = {f"{OUTPUT}{name}": uri for name, uri in outputs.uris.items()}
        if outputs.digest is not None:
            tags[DIGEST] = outputs.digest
        mlflow.set_tags(tags | _reusable(step, facts))


def run_name(step: str, config: Config) -> str:
    """Return the name of the run of *step*; register has two other jobs, rollback and verify."""
    if step == "register" and config.register.rollback:
        return "rollback"
    if step == "register" and config.register.verify_key:
        return "verify"
    return step


def _reusable(step: str, facts: Fingerprint) -> dict[str, str]:
    """Return the tag by which the active run can be reused; none if a source file changed during the run.

    In that case we cannot tell which version ran.
    """
    ladder = any(path.startswith("steps/ladder/") for path in facts.sources)
    saved = [path for path, digest in sources(step, ladder=ladder).items() if facts.sources.get(path) != digest]
    if saved:
        print(f"{step} will not be reused: {', '.join(saved)} changed while it ran", flush=True)
        return {}
    return {FINGERPRINT: facts.value}


@contextmanager
def open_run(name: str, config: Config, parts: tuple[str, ...] = ("",)) -> Iterator[ActiveRun]:
    """Open the run *name*, with provenance and parameters: the run that MLflow made for this process, or a new one.

    The parameters are the keys that the step *name* reads, or *parts* of the configuration if *name* is no step. At the
    end the run's status is FINISHED, FAILED after an error, or KILLED after a signal.
    """
    require_memory_for(config)
    # `explained` also inside: otherwise closing the run would retry the missing server.
    with explained(), _own_run(name) as run, explained():
        if not is_checked():
            require_usable_artifacts(run)
            mark_checked()
        mlflow.set_tags(provenance_tags(config.seed))
        remove_credentials(run.info.run_id)
        if changes := uncommitted_changes():
            mlflow.log_text(without_secrets(changes), "code.diff")
        log_new_params(run, config, STEPS[name].reads if name in STEPS else parts)
        yield run
        if name not in STEPS:
            log_artifact_list()


def log_artifact_list() -> None:
    """Log the list of the active run's artifacts, which a later flow compares with what it finds."""
    run = mlflow.active_run()
    assert run is not None
    record_artifacts(run)


@contextmanager
def _own_run(name: str) -> Iterator[ActiveRun]:
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)
    mlflow.set_system_metrics_sampling_interval(SAMPLING_SECONDS)
    if not is_checked():
        require_usable_server()
    with _opened_by_one():
        run = _start_run(name)
    status = "FAILED"
    try:
        yield run
        status = "FINISHED"
    except (SystemExit, KeyboardInterrupt):
        closing()
        status = "KILLED"
        with suppress(MlflowException):  # the signal may have come while a nested run was being created
            close_below(run.info.run_id)
        raise
    except Exception as error:
        with suppress(MlflowException):  # a missing server must not hide the error itself
            mlflow.set_tag(ERROR, without_secrets(one_line(error)))
        raise
    finally:
        mlflow.end_run(status)


def _start_run(name: str) -> ActiveRun:
    given = os.environ.get("MLFLOW_RUN_ID")  # MLflow removes it long before it opens the run
    try:
        # With tags from the start, because a run without its process would stay RUNNING after a kill.
        tags = {STEP: name, PROCESS: process_tag()}
        return mlflow.start_run(run_name=name, tags=tags, log_system_metrics=name in STEPS)
    except (SystemExit, KeyboardInterrupt):
        closing()
        mlflow.end_run("KILLED")
        if given:
            os.environ["MLFLOW_RUN_ID"] = given  # still to be closed
        raise


def _opened_by_one() -> AbstractContextManager[None]:
    """Return the lock under which this process may open the store.

    If two processes open a fresh database at the same moment, both set it up, and one fails. A server has set up its
    database before it answers.
    """
    uri = mlflow.get_tracking_uri()
    return nullcontext() if uri.startswith("http") else one_at_a_time(f"store-{hash_text(uri)}")


def log_new_params(run: ActiveRun, config: Config, parts: tuple[str, ...]) -> None:
    """Log the keys of *config* that are in *parts* as parameters; `""` means all.

    MLflow has already logged keys given with -P, quoted for a shell. A parameter cannot change, so these stay.
    """
    logged = set(MlflowClient().get_run(run.info.run_id).data.params)
    flat = {key: value for key, value in flat_dict(config).items() if key.startswith(parts)}
    mlflow.log_params({key: value for key, value in flat.items() if key not in logged and value is not None})


def input_run(step: str, config: Config) -> Run:
    """Return the FINISHED run of *step* that the configuration names, and tag the active run with its id.

    Raises StepError if the configuration names no such run.
    """
    key = STEPS[step].run_key
    assert key is not None
    run_id = getattr(config, key)
    if not run_id:
        msg = f"no {key}: name a finished run of {step} with -P {key}=<run id>"
        raise StepError(msg)
    try:
        run = MlflowClient().get_run(run_id)
    except MlflowException as error:
        store = without_credentials(mlflow.get_tracking_uri())
        msg = f"{key}={run_id} is not a run in {store}: name a finished run of {step}"
        raise StepError(msg) from error
    made_by = run.data.tags.get(STEP)
    if made_by != step or run.info.status != "FINISHED":
        msg = f"{key}={run_id} is a {run.info.status} run of {made_by}: name a FINISHED run of {step}"
        raise StepError(msg)
    mlflow.set_tag(key, run_id)
    return run
