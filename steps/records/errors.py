"""The errors that a user can fix, and an error as one line.

ConfigError   the configuration cannot be used: exit 2, before anything is started or logged
StepError     a step cannot do its work: exit 1, and its run is FAILED

Any other exception is a bug and keeps its trace.
"""


class ConfigError(Exception):
    """The configuration names something that does not exist, or gives a value that cannot be used."""


class StepError(Exception):
    """A step found something that the user has to fix: fact, value and remedy in one line."""


def first_line(error: BaseException) -> str:
    """Return the first line of the message of *error*, or the name of its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """Return *error* as one line of at most 500 characters, beginning with its class unless it is a StepError."""
    line = first_line(error)
    return (line if isinstance(error, StepError) else f"{type(error).__name__}: {line}")[:500]


def in_one_line(error: BaseException) -> str:
    """Return the class and the whole message of *error* as one line of at most 500 characters; for library errors."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
