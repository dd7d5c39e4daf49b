"""What to tell the user about an override that cannot be used: the key, the value, and the nearest valid one."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf

from steps.records.errors import first_line


def advise(error: Exception, overrides: list[str], defaults: DictConfig, conf: Path) -> str:
    """Return one line that explains *error*, which was raised while *overrides* were composed over *defaults*."""
    folders = [folder for folder in conf.iterdir() if folder.is_dir()]
    groups = {folder.name: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}
    keys = [*_keys(OmegaConf.to_container(defaults)), *groups]
    for override in overrides:
        try:
            parsed = OverridesParser.create().parse_override(override)
        except HydraException:
            return f"{override} is not an override: write KEY=VALUE, and quote special characters as KEY='VALUE'"
        key, value = parsed.key_or_group, override.partition("=")[2]
        if parsed.is_sweep_override():
            return (
                f"{override} gives several values: quote it ({key}='{value}') for one text, or use -e sweep to try each"
            )
        if key in groups and value not in groups[key]:
            return f"unknown {key}={value}{nearest(value, groups[key])}; there are {', '.join(groups[key])}"
        if not parsed.is_add() and key not in keys:
            return f'unknown key {key}={value}{nearest(key, keys)}; a new key needs -P overrides="+{key}=..."'
    if isinstance(error, MissingConfigException):
        return first_line(error).rstrip(".")
    return _explain_value(error, overrides)


def _explain_value(error: Exception, overrides: list[str]) -> str:
    """Return one line about a value that does not fit its key."""
    cause: BaseException = error.__cause__ or error
    stated = re.search(r"full_key: (\S+)", str(cause))
    key = getattr(cause, "full_key", None) or (stated.group(1) if stated else "")
    given = next((override for override in reversed(overrides) if override.partition("=")[0].lstrip("+~") == key), key)
    fact = first_line(cause).rstrip(".")
    return f"{given} cannot be used: {fact}" if given else fact


def nearest(word: str, known: Sequence[str]) -> str:
    """Return "; did you mean X?" for the entry of *known* nearest to *word*, or "" if none is near."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    return f"; did you mean {close[0]}?" if close else ""


def _keys(tree: object, prefix: str = "") -> Iterator[str]:
    """Yield every key of the nested dictionaries *tree*, dotted."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield f"{prefix}{key}"
            yield from _keys(value, f"{prefix}{key}.")
