"""The two errors that are a user's to mend. Both are shown as one line; anything else is a bug and shows its trace.

ConfigError   the configuration cannot be used: exit 2, before anything was started or logged
StepError     a step cannot do its work: exit 1, its run FAILED
"""


class ConfigError(Exception):
    """The configuration names something that does not exist, or gives a value that cannot be used."""


class StepError(Exception):
    """A step found something that the user has to mend: the fact, the value and the remedy, in one line."""
