"""Translate a command line into Hydra's overrides, and compose them into a Config.

MLflow appends `--key value` for every -P that an entry point does not declare. Hydra expects `key=value`. Every entry
point understands both, and Hydra's own flags.
"""

import re
import shlex
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from steps.config.schema import FIDELITY, ROOT, Config
from steps.config.suggestions import advise
from steps.config.validation import to_config
from steps.config.values import holds_text
from steps.records.errors import ConfigError
from steps.safety.secrets import refuse_secrets, refuse_tokens

CONF = ROOT / "conf"
EMBEDDED = "tiny_phi3"
"""The model that is in the repository."""
DEFAULTS = {"onnx": ("int4_cpu", "auto"), "evaluate": ("capitals", "general")}
"""By group, the choice for the embedded model and for every other, if the command line makes none."""
HYDRA_SWITCHES = {"--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m"}
HYDRA_OPTIONS = {"--cfg", "-c", "--package", "-p", "--info", "-i"}


def translate(arguments: list[str], *, sweep: bool = False) -> tuple[list[str], list[str]]:
    """Return (overrides for Hydra, flags of Hydra's own) for a command line.

    MLflow turns `-P key=value` into `--key value`. `--overrides "a=1 b='x y'"` holds several keys, quoted as in a
    shell, but no shell ever sees them. With *sweep*, commas separate values to try. Raises ConfigError for a line that
    cannot be read or that holds a secret.
    """
    refuse_tokens(arguments)  # first, because the errors below repeat the argument
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

    A value that Hydra's grammar accepts stays unquoted: numbers, lists, null, quoted text, `${seed}`. Any other value
    is quoted as text: `a, b`, `$(x)`, `it's`. If the key holds text, `[a,b]` and `1_000` are quoted too. Commas
    separate values to try with *sweep* only.
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
    # OmegaConf interpolates ${...} inside quotes too, unless it is escaped.
    return f"{key}={QuotedString(value.replace('${', chr(92) + '${'), Quote.single).with_quotes()}"


def compose_config(overrides: list[str]) -> Config:
    """Return the Config composed from conf/ and *overrides*. Raises ConfigError with one line if it cannot be used."""
    register_schema()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        try:
            composed = _compose(overrides)
            return to_config(composed)
        except (HydraException, OmegaConfBaseException) as error:
            defaults = compose("config", overrides=["onnx=auto"])  # it has the most keys
            raise ConfigError(advise(error, overrides, defaults, CONF)) from error


def _compose(overrides: list[str]) -> DictConfig:
    """Return what Hydra composes. Raises HydraException or OmegaConfBaseException for what it cannot."""
    try:
        return compose("config", overrides=overrides)
    except (AttributeError, AssertionError) as error:  # OmegaConf, for a key below null or below an interpolation
        raise OmegaConfBaseException(*error.args) from error


def register_schema() -> None:
    """Register the types of the configuration and the resolvers of conf/ with Hydra."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("last_part", lambda path: _last_part(str(path)), replace=True)
    OmegaConf.register_new_resolver("temp_dir", tempfile.gettempdir, replace=True)
    for group, (own, other) in DEFAULTS.items():
        choose = partial(_default, own, other)
        OmegaConf.register_new_resolver(f"{group}_for", choose, replace=True)
    OmegaConf.register_new_resolver("fidelity_gates", _fidelity_gates, replace=True)


def _fidelity_gates(gates: DictConfig) -> dict[str, Any]:
    """Return those of evaluate's *gates* that a build can be judged by before it is asked anything."""
    plain: Any = OmegaConf.to_container(gates, resolve=True)
    return {
        name: gate
        for name, gate in plain.items()
        if isinstance(gate, dict) and str(gate.get("metric")).startswith(FIDELITY)
    }


def _default(own: str, other: str, model: str) -> str:
    return own if model == EMBEDDED else other


def _last_part(path: str) -> str:
    """Return the last part of a repository or folder as a name that MLflow's registry accepts."""
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
