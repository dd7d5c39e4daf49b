"""A Config as plain values: nested, flat by dotted key, or YAML."""

from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from enum import Enum
from typing import Any, get_type_hints

import yaml

from steps.config.schema import Config


def holds_text(key: str) -> bool:
    """Return whether the dotted *key* is declared as a string."""
    kind: object = Config
    for part in key.split("."):
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    return kind in (str, str | None)


def to_dict(config: Config) -> dict[str, Any]:
    """Return *config* as nested dictionaries of plain values."""
    return asdict(config, dict_factory=lambda items: {k: v.value if isinstance(v, Enum) else v for k, v in items})


def flat_dict(config: Config) -> dict[str, Any]:
    """Return *config* as plain values by dotted key."""
    return dict(_flatten(to_dict(config)))


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_yaml(config: Config) -> str:
    """Return *config* as YAML text."""
    # Not with OmegaConf: it would interpolate text such as `${`, which is resolved already.
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)
