"""The configured gates, checked. Apart from the schema, so that a change of how gates judge touches evaluate alone."""

from steps.evaluation.gates import Gate, read_gates
from steps.flow.errors import ConfigError
from steps.flow.schema import Config


def configured_gates(config: Config) -> dict[str, Gate]:
    """Return the gates of `evaluate.gates` by name. Raises ConfigError for the first that cannot be judged."""
    try:
        return read_gates(config.evaluate.gates)
    except ValueError as error:
        raise ConfigError(str(error)) from error
