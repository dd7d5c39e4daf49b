"""What an evaluation found, as one object: the input of the report, the plots and the tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steps.evaluation.cost import Timing
from steps.evaluation.fidelity import TokenFidelity
from steps.evaluation.gates import Verdict
from steps.evaluation.metrics import Metrics
from steps.evaluation.predictions import Prediction
from steps.report.ladder import Ladder


@dataclass(frozen=True)
class Results:
    """What was found, and how.

    `fidelity`: by candidate. Text n belongs to example n; further texts are pieces of the text file. `method` says how
    it was measured, `provenance` what was measured, as labels and values. `ladder`: what onnx=auto tried.
    """

    title: str
    reference: str
    predictions: Sequence[Prediction]
    metrics: Metrics
    verdicts: Sequence[Verdict]
    fidelity: Mapping[str, TokenFidelity]
    timings: Sequence[Timing]
    method: Mapping[str, object]
    provenance: Mapping[str, object]
    ladder: Ladder | None = None

    @property
    def candidates(self) -> list[str]:
        """The names of the candidates, the reference first."""
        return list(self.predictions[0].answers)
