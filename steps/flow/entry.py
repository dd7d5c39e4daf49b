"""One process is one entry point: command line, signals, store, exit codes."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import hydra
import psutil
from hydra.core.hydra_config import HydraConfig
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig
from sqlalchemy.exc import OperationalError

from steps.config.command_line import CONF, compose_config, register_schema, translate
from steps.config.schema import Config
from steps.config.validation import to_config
from steps.flow.runs import run_step
from steps.records.errors import ConfigError, StepError
from steps.safety.processes import LAUNCHER_PID, close_run, closing, end_on_signals, watch_launcher
from steps.safety.secrets import remove_credentials

Main = Callable[[Config, list[str]], None]
"""The function of an entry point: it takes the configuration, and the overrides that it was composed from."""

RELATIVE_SQLITE = "sqlite:///"

USER_FOLDER = "SLM_USER_FOLDER"
"""The environment variable with the folder in which the command was typed. Set while the launcher is still alive."""


def execute(step: str) -> None:
    """Run `steps/<step>.py` with the configuration that the command line describes."""
    command(step, lambda config, _overrides: run_step(step, import_module(f"steps.{step}").run, config))


def command(name: str, main: Main) -> None:
    """Run *main*, the entry point *name*, with the configuration that the command line describes."""
    with reporting(name):
        overrides, flags = translate(sys.argv[1:])
        if flags:
            run_through_hydra(main, [*flags, *overrides])
        else:
            main(compose_config(overrides), overrides)


@contextmanager
def reporting(name: str) -> Iterator[None]:
    """Make this process the entry point *name*: settle the store, and turn errors and signals into exit codes.

    A ConfigError exits with 2 and one line, a StepError with 1 and one line. Other exceptions keep their trace.
    """
    end_on_signals()
    os.environ[USER_FOLDER] = str(user_folder())
    settle_store()
    hide_credentials()
    try:
        watch_launcher()
        yield
    except SystemExit as ended:
        if ended.code:  # a signal; --help exits with 0
            close_unopened_run()
        raise
    except ConfigError as error:
        print(f"{name}: {_said(error)}", file=sys.stderr)
        if run_id := os.environ.get("MLFLOW_RUN_ID"):
            with suppress(MlflowException):
                remove_credentials(run_id)  # MLflow made this run, and no step will open it
        sys.exit(2)
    except StepError as error:
        print(f"{name}: {_said(error)}", file=sys.stderr)
        sys.exit(1)


def _said(error: Exception) -> str:
    """Return what *error* says, in one line, as a terminal can show it."""
    return str(error).replace("\n", "\\n").encode(errors="backslashreplace").decode()


def run_through_hydra(main: Main, arguments: list[str]) -> None:
    """Let Hydra handle its own flags, such as --help, --cfg job and --multirun.

    Raises ConfigError and StepError as *main* does: Hydra would print their traces.
    """
    refused: list[ConfigError | StepError] = []

    def job(composed: DictConfig) -> None:
        try:
            main(to_config(composed), list(HydraConfig.get().overrides.task))
        except (ConfigError, StepError) as error:
            refused.append(error)
            sys.exit()

    register_schema()
    sys.argv[1:] = arguments
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(job)()
    except SystemExit:
        if refused:
            raise refused[0] from None
        raise


def settle_store() -> None:
    """Make a relative `sqlite:///x.db` absolute, for this process and all that it starts.

    `mlflow run <git URL>` runs in a clone, where a relative URI would name another, empty database. The URI is relative
    to the folder in which the command was typed.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    path = uri.removeprefix(RELATIVE_SQLITE)
    if path != uri and not path.startswith("/"):
        os.environ["MLFLOW_TRACKING_URI"] = f"{RELATIVE_SQLITE}{(user_folder() / path).resolve()}"


def user_folder() -> Path:
    """Return the folder in which the command was typed: `mlflow run <git URL>` works in a clone elsewhere.

    `mlflow run` does not change its own folder.
    """
    if known := os.environ.get(USER_FOLDER):
        return Path(known)
    launcher = int(os.environ.get(LAUNCHER_PID, "0"))
    with suppress(psutil.Error):
        return Path(psutil.Process(launcher).cwd()) if launcher > 1 else Path.cwd()
    return Path.cwd()


def hide_credentials() -> None:
    """Take user and password out of MLFLOW_TRACKING_URI: MLflow prints it, and stores it with models.

    MLflow reads them from variables of their own as well, here and in all that this process starts.
    """
    parts = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if not parts.scheme.startswith("http") or "@" not in parts.netloc:
        return
    names = {"MLFLOW_TRACKING_USERNAME": parts.username, "MLFLOW_TRACKING_PASSWORD": parts.password}
    os.environ.update({name: unquote(value) for name, value in names.items() if value is not None})
    os.environ["MLFLOW_TRACKING_URI"] = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def close_unopened_run() -> None:
    """Mark as KILLED the run that this process was given but did not open; the process that made it may be gone."""
    run_id = os.environ.get("MLFLOW_RUN_ID")  # MLflow removes it when it opens the run
    if run_id is None:
        return
    closing()
    with suppress(MlflowException, OperationalError):
        close_run(run_id)
