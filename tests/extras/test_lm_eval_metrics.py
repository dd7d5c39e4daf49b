"""What lm-evaluation-harness reports, made into metrics: results of its shape, figures worked out by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from steps.evaluation.metrics import Metrics, flatten
from steps.extras.lm_eval_metrics import harness_metrics, write_harness


def results(*hits: int, first: int = 0) -> dict[str, Any]:
    """Return results of one task with accuracy, after two filters, and a perplexity; *hits* by question."""
    samples = [
        {
            "doc_id": number,
            "doc_hash": f"hash {number + first}",
            "filter": kind,
            "metrics": ["acc", "perplexity"],
            "acc": float(hit) if kind == "none" else 0.0,
            "perplexity": [-3.5, 7],
        }
        for kind in ("none", "strict-match")
        for number, hit in enumerate(hits)
    ]
    figures = {
        "alias": "my task",
        "sample_len": len(hits),
        "acc,none": sum(hits) / len(hits),
        "acc_stderr,none": 0.125,
        "acc,strict-match": 0.0,
        "acc_stderr,strict-match": 0.0,
        "perplexity,none": 4.5,
        "perplexity_stderr,none": "N/A",
    }
    return {"results": {"my;task": figures}, "samples": {"my;task": samples}, "versions": {"my;task": 1.0}}


@pytest.fixture
def metrics() -> Metrics:
    found = {"pipeline": results(1, 1, 1, 1, 0, 1, 1, 1), "onnx": results(1, 0, 1, 0, 1, 1, 1, 1)}
    return harness_metrics(found, "pipeline", 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("onnx.harness.my_task.acc", 0.75),
        ("onnx.harness.my_task.acc_stderr", 0.125),
        ("onnx.harness.my_task.acc_low", 0.4093),  # Wilson's, 6 of 8
        ("onnx.harness.my_task.acc_high", 0.9285),
        ("onnx.harness.my_task.acc_difference", -0.125),
        ("onnx.harness.my_task.acc_lost", 2),
        ("onnx.harness.my_task.acc_gained", 1),
        ("onnx.harness.my_task.acc_strict-match", 0),
        ("onnx.harness.my_task.acc_strict-match_stderr", 0),
        ("onnx.harness.my_task.acc_strict-match_difference", 0),
        ("onnx.harness.my_task.examples", 8),
        ("pipeline.harness.my_task.perplexity", 4.5),
    ],
)
def test_each_figure_is_what_the_harness_says_or_one_computes_by_hand(
    metrics: Metrics, name: str, value: float
) -> None:
    assert flatten(metrics)[name] == pytest.approx(value, abs=1e-4)


def test_what_is_no_number_is_left_out_and_only_hits_are_compared(metrics: Metrics) -> None:
    assert not [name for name in flatten(metrics) if "perplexity_" in name or "alias" in name]
    assert not [name for name in metrics["pipeline"] if "difference" in name]


def test_hits_whose_metric_is_not_their_mean_get_no_interval() -> None:
    found = results(1, 0)
    found["results"]["my;task"]["acc,none"] = 0.9

    figures = harness_metrics({"pipeline": found, "onnx": found}, "pipeline", 0)["onnx"]

    assert figures["harness.my_task.acc"] == 0.9
    assert not figures.keys() & {"harness.my_task.acc_low", "harness.my_task.acc_difference"}


def test_candidates_that_were_asked_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match=r"asked other examples of my_task\.acc"):
        harness_metrics({"pipeline": results(1, 1), "onnx": results(1, 1, first=5)}, "pipeline", 0)


def test_results_and_samples_are_written_apart(tmp_path: Path) -> None:
    write_harness(tmp_path, {"onnx": results(1, 0)})

    summary = json.loads((tmp_path / "onnx" / "results.json").read_text())
    samples = (tmp_path / "onnx" / "samples_my_task.jsonl").read_text().splitlines()
    assert summary["results"]["my;task"]["acc,none"] == 0.5
    assert "samples" not in summary
    assert [json.loads(line)["acc"] for line in samples] == [1, 0, 0, 0]
