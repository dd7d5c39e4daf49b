"""From a command line to a Config, and from an exception to an exit code.

MLflow gives `--key value` for every -P that an entry point does not declare; Hydra wants `key=value`. Both, and
Hydra's own flags, are understood here, for every step alike.
"""

import os
import re
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from steps.flow.advice import advise
from steps.flow.checks import to_config
from steps.flow.errors import ConfigError, StepError
from steps.flow.processes import end_on_signals, watch_launcher
from steps.flow.schema import ROOT, Config, holds_text
from steps.flow.secrets import refuse_secrets, refuse_tokens, remove_credentials
from steps.flow.tracking import close_unopened_run, settle_store

CONF = ROOT / "conf"
HYDRA_SWITCHES = {"--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"}
HYDRA_OPTIONS = {"--cfg", "-c", "--package", "-p", "--info", "-i"}

Main = Callable[[Config, list[str]], None]
"""What a step's module runs: its configuration, and the overrides that made it."""


def execute(name: str, main: Main) -> None:
    """Run *main* with the configuration that the command line describes."""
    with reporting(name):
        overrides, flags = translate(sys.argv[1:])
        if flags:
            run_through_hydra(main, [*flags, *overrides])
        else:
            main(compose_config(overrides), overrides)


@contextmanager
def reporting(name: str) -> Iterator[None]:
    """Make this process the entry point *name*: settle the store, and turn errors and signals into exit codes.

    Exits with 2 and one line for a ConfigError, with 1 and one line for a StepError; other exceptions keep their trace.
    """
    end_on_signals()
    settle_store()
    try:
        watch_launcher()
        yield
    except SystemExit as ended:
        if ended.code:  # a signal; Hydra ends --help with 0
            close_unopened_run()
        raise
    except ConfigError as error:
        print(f"{name}: {error}", file=sys.stderr)
        if run_id := os.environ.get("MLFLOW_RUN_ID"):
            with suppress(MlflowException):
                remove_credentials(run_id)  # MLflow made this run; no step will ever open it
        sys.exit(2)
    except StepError as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(1)


def translate(arguments: list[str], *, sweep: bool = False) -> tuple[list[str], list[str]]:
    """Return (overrides for Hydra, flags of Hydra's own) for a command line.

    `--key value` is what MLflow makes of `-P key=value`. `--overrides "a=1 b='x y'"` holds several, quoted as in a
    shell but never given to one. With *sweep*, commas separate values to try. Raises ConfigError for what is neither.
    """
    refuse_tokens(arguments)  # first: what cannot be read below is repeated in an error
    overrides: list[str] = []
    flags: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in HYDRA_SWITCHES:
            flags.append(argument)
        elif argument in HYDRA_OPTIONS:
            flags += [argument, _value_of(argument, rest)]
        elif argument == "--overrides":
            for item in _split(_value_of(argument, rest)):
                key, equals, value = item.partition("=")
                overrides.append(as_override(key, value, sweep=sweep) if equals else item)
        elif argument.startswith("--"):
            overrides.append(as_override(argument[2:], _value_of(argument, rest), sweep=sweep))
        else:
            overrides.append(argument)
    refuse_secrets(overrides)
    return overrides, flags


def as_override(key: str, value: str, *, sweep: bool = False) -> str:
    """Return Hydra's override that sets *key* to *value*, exactly as given.

    What Hydra's grammar reads as one value stays as it is: numbers, lists, null, quoted text, `${seed}`. Anything else
    is text and quoted for it: `a, b`, `$(x)`, `it's`; so is `[a,b]` or `1_000` for a key that holds text. Only with
    *sweep* do commas separate values to try.
    """
    plain = f"{key}={value}"
    try:
        parsed = OverridesParser.create().parse_override(plain)
    except HydraException:
        return _as_text(key, value)
    if parsed.is_sweep_override():
        return plain if sweep else _as_text(key, value)
    read = parsed.value()
    as_meant = read is None or read == value or value[0] in "'\""
    return plain if as_meant or not holds_text(key) else _as_text(key, value)


def _as_text(key: str, value: str) -> str:
    # OmegaConf reads ${...} inside quotes too: escaped, it stays text.
    return f"{key}={QuotedString(value.replace('${', chr(92) + '${'), Quote.single).with_quotes()}"


def compose_config(overrides: list[str]) -> Config:
    """Return the Config that conf/ and *overrides* make. Raises ConfigError, one line, for what cannot be used."""
    _register_schema()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        try:
            composed = compose("config", overrides=overrides)
            return to_config(composed)
        except (HydraException, OmegaConfBaseException) as error:
            defaults = compose("config")
            raise ConfigError(advise(error, overrides, defaults, CONF)) from error


def run_through_hydra(main: Main, arguments: list[str]) -> None:
    """Let Hydra itself act on its flags: --help, --cfg job, --multirun and the like."""

    def job(composed: DictConfig) -> None:
        main(to_config(composed), list(HydraConfig.get().overrides.task))

    _register_schema()
    sys.argv[1:] = arguments
    hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(job)()


def _register_schema() -> None:
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("last_part", lambda path: _last_part(str(path)), replace=True)
    OmegaConf.register_new_resolver("temp_dir", tempfile.gettempdir, replace=True)


def _last_part(path: str) -> str:
    """Return the last part of a repository or folder as a name that MLflow's registry takes."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", PurePosixPath(path).name)


def _value_of(argument: str, rest: Iterator[str]) -> str:
    value = next(rest, None)
    if value is None:
        msg = f"{argument} has no value: write {argument} VALUE, or KEY=VALUE"
        raise ConfigError(msg)
    return value


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        msg = f"overrides={text} cannot be split ({error}): quote it as in a shell, for example \"a=1 b='x y'\""
        raise ConfigError(msg) from error
