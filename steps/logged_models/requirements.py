"""What a logged model asks pip for: the versions that the project's own lock holds."""

from packaging.requirements import Requirement

from steps.config.schema import ROOT


def locked(*packages: str) -> list[str]:
    """Return `name==version` for each of *packages*, as requirements.txt has it for this Python and platform.

    Raises KeyError for one that the lock lacks.
    """
    lines = (line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].isalnum())
    lock = {found.name: found for found in map(Requirement, lines) if found.marker is None or found.marker.evaluate()}
    return [f"{package}{lock[package].specifier}" for package in packages]
