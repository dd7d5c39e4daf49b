"""The results of an evaluation, for tests of what shows them."""

from collections.abc import Sequence
from typing import Any

from steps.evaluation.metrics import measure
from steps.evaluation.predictions import Prediction
from steps.report.results import Results


def results_of(predictions: Sequence[Prediction], **changes: Any) -> Results:
    """Return results with the metrics of *predictions*, without gates, fidelity and timings unless *changes* say so."""
    reference = next(iter(predictions[0].answers))
    options: dict[str, Any] = {
        "title": "tiny_phi3",
        "reference": reference,
        "metrics": measure(predictions, {}, reference, 0),
        "verdicts": [],
        "fidelity": {},
        "timings": [],
        "method": {"Threads": 2},
        "provenance": {"commit": "f39ac1d28e925b323eae81227eaba4464caced4e"},
    }
    return Results(predictions=predictions, **{**options, **changes})
