"""What a logged model asks pip for: the versions that the project's own lock holds."""

import re

from steps.flow.schema import ROOT


def locked(*packages: str) -> list[str]:
    """Return `name==version` for each of *packages*, as requirements.txt has them. Raises KeyError for one it lacks."""
    lock = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    return [f"{package}=={lock[package]}" for package in packages]
