import json
import math
from pathlib import Path
from typing import Any

import pytest

from steps.config.command_line import compose_config
from steps.evaluation.gates import Gate, judge, overall, read_gates, write_gates

FIGURES = {"onnx.task.accuracy": 0.92, "onnx.task.accuracy_low": 0.87, "onnx.task.accuracy_high": 0.95}


def verdict(figures: dict[str, float], **limits: Any) -> tuple[str, str]:
    """Return verdict and reason of a gate called `right` on onnx.task.accuracy."""
    (found,) = judge(figures, {"right": Gate("onnx.task.accuracy", **limits)})
    return found.verdict, found.reason


@pytest.mark.parametrize(
    ("limits", "expected", "reason"),
    [
        ({"min": 0.9}, "passed", "onnx.task.accuracy 0.92 keeps evaluate.gates.right.min=0.9"),
        ({"min": 0.92}, "passed", "onnx.task.accuracy 0.92 keeps evaluate.gates.right.min=0.92"),
        ({"max": 0.92}, "passed", "onnx.task.accuracy 0.92 keeps evaluate.gates.right.max=0.92"),
        ({"min": 0.93}, "failed", "onnx.task.accuracy 0.92 is below evaluate.gates.right.min=0.93"),
        ({"max": 0.9}, "failed", "onnx.task.accuracy 0.92 is above evaluate.gates.right.max=0.9"),
        ({"min": 0.1, "max": 0.9}, "failed", "onnx.task.accuracy 0.92 is above evaluate.gates.right.max=0.9"),
    ],
)
def test_a_point_gate_is_decided_by_the_figure(limits: dict[str, float], expected: str, reason: str) -> None:
    assert verdict(FIGURES, **limits) == (expected, reason)


@pytest.mark.parametrize(
    ("limits", "expected", "reason"),
    [
        ({"min": 0.87}, "passed", "keeps evaluate.gates.right.min=0.87"),
        ({"max": 0.95}, "passed", "keeps evaluate.gates.right.max=0.95"),
        ({"min": 0.96}, "failed", "is below evaluate.gates.right.min=0.96"),
        ({"max": 0.86}, "failed", "is above evaluate.gates.right.max=0.86"),
        ({"min": 0.9}, "inconclusive", "reaches below evaluate.gates.right.min=0.9; ask more examples"),
        ({"min": 0.93}, "inconclusive", "reaches below evaluate.gates.right.min=0.93; ask more examples"),
        ({"max": 0.9}, "inconclusive", "reaches above evaluate.gates.right.max=0.9; ask more examples"),
        ({"min": 0.5, "max": 0.9}, "inconclusive", "reaches above evaluate.gates.right.max=0.9"),
    ],
)
def test_an_interval_gate_is_decided_by_the_whole_interval(
    limits: dict[str, float], expected: str, reason: str
) -> None:
    found, why = verdict(FIGURES, use="interval", **limits)

    assert found == expected
    assert why.startswith(f"onnx.task.accuracy 0.92 (interval 0.87 to 0.95) {reason}")


def test_a_missing_figure_fails_its_gate() -> None:
    found, reason = verdict({"onnx.task.acuracy": 1.0}, min=0.9)

    assert found == "failed"
    assert reason == (
        "onnx.task.accuracy was not measured; the nearest is onnx.task.acuracy; evaluate.gates.right cannot be judged"
    )
    assert verdict({}, min=0.9)[0] == "failed"


@pytest.mark.parametrize("figure", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("limits", [{"min": -1e300}, {"max": 1e300}])
def test_a_figure_that_is_not_finite_fails_its_gate(figure: float, limits: dict[str, float]) -> None:
    found, reason = verdict({"onnx.task.accuracy": figure}, **limits)

    assert found == "failed"
    assert f"is {figure}, not a finite number" in reason


@pytest.mark.parametrize(
    "bounds",
    [
        {"onnx.task.accuracy_low": 0.9},
        {"onnx.task.accuracy_low": math.nan, "onnx.task.accuracy_high": 0.95},
        {"onnx.task.accuracy_low": 0.95, "onnx.task.accuracy_high": 0.9},
    ],
)
def test_an_interval_gate_without_a_sound_interval_fails(bounds: dict[str, float]) -> None:
    found, reason = verdict({"onnx.task.accuracy": 0.92, **bounds}, min=0.5, use="interval")

    assert found == "failed"
    assert "has no interval around it; set evaluate.gates.right.use=point" in reason


def test_a_figure_without_an_interval_cannot_tell() -> None:
    found, reason = verdict({"onnx.task.accuracy": 0.92}, min=0.5, use="interval")

    assert found == "inconclusive"
    assert "has no interval: the examples are too few; ask more examples" in reason


@pytest.mark.parametrize(
    ("section", "fact"),
    [
        ({"metric": "m"}, "evaluate.gates.right has neither min nor max"),
        ({"metric": "m", "min": math.nan}, "evaluate.gates.right has the limit nan"),
        ({"metric": "m", "min": "0.9"}, "evaluate.gates.right has the limit '0.9'"),
        ({"metric": "m", "min": 2, "max": 1}, "evaluate.gates.right has min=2 above max=1"),
        ({"metric": "m", "min": 1, "use": "lower"}, "has use='lower'; choose point or interval"),
        ({"metric": "m", "minimum": 1}, "evaluate.gates.right.minimum is not a field of a gate"),
        ({"min": 1}, "evaluate.gates.right.metric is missing"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_refused_by_its_key(section: dict[str, Any], fact: str) -> None:
    with pytest.raises(ValueError) as error:
        read_gates({"right": section})

    assert fact in str(error.value)


def test_one_failure_outweighs_all_and_doubt_outweighs_a_pass() -> None:
    gates = {
        "sure": Gate("onnx.task.accuracy", min=0.8),
        "doubt": Gate("onnx.task.accuracy", min=0.9, use="interval"),
        "broken": Gate("onnx.task.accuracy", min=0.99),
    }
    sure, doubt, broken = judge(FIGURES, gates)

    assert overall([sure]) == "passed"
    assert overall([sure, doubt]) == "inconclusive"
    assert overall([sure, doubt, broken]) == "failed"


def test_without_gates_nothing_was_decided() -> None:
    assert overall([]) == "inconclusive"


def test_gates_json_is_strict_json_with_every_verdict(tmp_path: Path) -> None:
    gates = read_gates(
        {
            "right": {"metric": "onnx.task.accuracy", "min": 0.9, "use": "interval"},
            "broken": {"metric": "onnx.task.agreement", "min": 0.9},
        }
    )

    write_gates(tmp_path / "gates.json", judge({**FIGURES, "onnx.task.agreement": math.nan}, gates))

    content = json.loads((tmp_path / "gates.json").read_text("utf-8"), parse_constant=pytest.fail)
    right, broken = content["gates"]
    assert content["verdict"] == "failed"
    assert (right["figure"], right["low"], right["high"], right["min"]) == (0.92, 0.87, 0.95, 0.9)
    assert (right["gate"], right["verdict"]) == ("right", "inconclusive")
    assert (broken["figure"], broken["verdict"]) == (None, "failed")


@pytest.mark.parametrize(
    ("build", "ratio", "divergence", "same_top", "holds"),
    [
        ("fp32", 1.000, 0.000, 1.00, True),
        ("int8, block 32", 1.005, 0.005, 0.95, True),
        ("int8, block 128", 1.014, 0.014, 0.91, True),
        ("int4, k_quant_mixed", 1.15, 0.19, 0.75, False),
        ("int4, block 32", 1.32, 0.38, 0.64, False),
        ("int4, block 128", 1.79, 0.71, 0.54, False),
    ],
)
def test_the_general_limits_pass_and_fail_the_builds_that_they_were_taken_from(
    build: str, ratio: float, divergence: float, same_top: float, holds: bool
) -> None:
    """Figures of SmolLM2-135M-Instruct, as conf/evaluate/general.yaml quotes them."""
    values = {"perplexity_ratio": ratio, "kl_mean": divergence, "same_top": same_top}
    figures = {f"onnx.fidelity.{name}{end}": value for name, value in values.items() for end in ("", "_low", "_high")}
    gates = read_gates(compose_config(["evaluate=general"]).evaluate.gates)

    verdicts = judge(figures, {name: gate for name, gate in gates.items() if ".fidelity." in gate.metric})

    assert [each.verdict for each in verdicts] == ["passed" if holds else "failed"] * 3, build


def test_no_general_limit_depends_on_how_good_the_model_is() -> None:
    gates = read_gates(compose_config(["evaluate=general"]).evaluate.gates)

    assert not [name for name, gate in gates.items() if gate.metric.endswith("task.accuracy")]
