"""The trials of a sweep, one for each combination of values; all are checked before the first starts."""

import itertools
import shlex
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from steps.config.command_line import compose_config
from steps.config.entry_points import Sweep as Options
from steps.config.schema import Config
from steps.records.errors import ConfigError, first_line
from steps.sweeps.trials import Trial


@dataclass(frozen=True)
class Plan:
    """The trials of a sweep with their configurations, and the options of the sweep itself."""

    trials: list[Trial]
    configs: list[Config]
    options: Options


def plan_of(overrides: list[str]) -> Plan:
    """Return the sweep that *overrides* describe. Raises ConfigError for the first combination that cannot be used."""
    own = [override for override in overrides if override.startswith("sweep.")]
    trials = trials_of([override for override in overrides if override not in own])
    configs = [compose_config([*trial, *own]) for trial in trials]
    for config in configs:
        if "evaluate" not in config.steps:
            msg = f"steps={config.steps} cannot be used in a sweep: add evaluate, which measures sweep.objective"
            raise ConfigError(msg)
    return Plan(trials, configs, configs[0].sweep)


def trials_of(overrides: list[str]) -> list[Trial]:
    """Return every combination of the values in *overrides*, in the order of Hydra's sweeper. Raises ConfigError."""
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        msg = f"{shlex.join(overrides)} cannot be read: {first_line(error)}; write KEY=VALUE,VALUE"
        raise ConfigError(msg) from error
    choices = []
    for override in parsed:
        line = str(override.input_line)
        key = line.partition("=")[0]
        choices.append([f"{key}={value}" for value in values_of(override)] if override.is_sweep_override() else [line])
    return list(itertools.product(*choices))


def values_of(override: Override) -> list[str]:
    """Return the values to try in *override*. Raises ConfigError if they cannot be listed, as for interval()."""
    try:
        return list(override.sweep_string_iterator())
    except HydraException as error:
        msg = f"{override.input_line} cannot be tried one by one: {first_line(error)}; write KEY=VALUE,VALUE"
        raise ConfigError(msg) from error


def varied(trials: list[Trial]) -> list[str]:
    """Return the keys whose value differs between *trials*."""
    return [column[0].partition("=")[0] for column in zip(*trials, strict=True) if len(set(column)) > 1]


def unregistered(trial: Trial, config: Config) -> Trial:
    """Return *trial*, whose configuration is *config*, without the step `register`."""
    return (*trial, f"steps=[{','.join(step for step in config.steps if step != 'register')}]")
