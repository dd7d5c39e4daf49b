"""What the flow gives a step, and what the step returns: `run(config, inputs) -> Outputs`."""

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow.entities import Run

Inputs = Mapping[str, Run]
"""The finished runs that a step builds on, by the name of the step that made each."""


@dataclass(frozen=True)
class Outputs:
    """What a step hands over. The flow writes it to the run's tags last, after everything else is logged.

    `uris`: URIs by name; each names something complete. `digest`: the hash that stands for the result in the
    fingerprints of later steps; None if no step builds on it.
    """

    uris: dict[str, str]
    digest: str | None = None
