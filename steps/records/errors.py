"""The errors that a user can mend, and the one line that each error is shown as.

ConfigError   the configuration cannot be used: exit 2, before anything is started or logged
StepError     a step cannot do its work: exit 1, its run FAILED

Any other exception is a bug and keeps its trace.
"""


class ConfigError(Exception):
    """The configuration names something that does not exist, or gives a value that cannot be used."""


class StepError(Exception):
    """A step found something that the user has to mend: the fact, the value and the remedy, in one line."""


def first_line(error: BaseException) -> str:
    """Return the first line of the message of *error*, or the name of its class where the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def one_line(error: BaseException) -> str:
    """Return *error* in one line of at most 500 characters: first its class unless it is a StepError."""
    line = first_line(error)
    return (line if isinstance(error, StepError) else f"{type(error).__name__}: {line}")[:500]


def in_one_line(error: BaseException) -> str:
    """Return class and whole message of *error* in one line of at most 500 characters, for errors of foreign code."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
