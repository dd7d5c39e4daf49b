import pytest

from steps.evaluation.asking import Answer
from steps.evaluation.cost import Footprint
from steps.evaluation.integrity import TokenIds
from steps.evaluation.metrics import MEANINGS, Measured, Metrics, flatten, measure, show, split_name
from steps.evaluation.predictions import Prediction, score
from steps.evaluation.tasks import Example


@pytest.fixture
def metrics(predictions: list[Prediction]) -> Metrics:
    measured = {"pipeline": Measured(Footprint(size_bytes=8e6)), "onnx": Measured(Footprint(size_bytes=2e6))}
    measured["onnx"].token_ids = TokenIds(same=[True] * 4, checkpoint=[True, True, True, False])
    return measure(predictions, measured, "pipeline", 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pipeline.task.accuracy", 0.8),
        ("onnx.task.accuracy", 0.7),
        ("onnx.task.accuracy_stderr", (0.7 * 0.3 / 10) ** 0.5),
        ("onnx.task.examples", 10),
        ("onnx.task.difference", -0.1),
        ("onnx.task.lost", 2),  # 0 wrong, 1 an error
        ("onnx.task.gained", 1),  # 8
        ("onnx.task.agreement", 0.6),  # all but 0, 1, 8 and 9
        ("onnx.integrity.answered", 0.9),
        ("onnx.integrity.errors", 1),
        ("onnx.integrity.same_tokens", 1),
        ("onnx.integrity.checkpoint_tokens", 0.75),
        ("onnx.cost.seconds_p50", 1.0),  # the error's 9 s are not the time of an answer
        ("onnx.cost.seconds_p50_ratio", 0.5),
        ("onnx.cost.answers_per_second", 1.0),
        ("onnx.cost.timed_answers", 9),
        ("pipeline.cost.tokens_per_second", 2.0),  # 4 tokens in 2 s
        ("onnx.cost.size_bytes_ratio", 0.25),
    ],
)
def test_each_figure_is_what_one_computes_by_hand(metrics: Metrics, name: str, value: float) -> None:
    assert flatten(metrics)[name] == pytest.approx(value)


def test_only_the_build_is_compared_with_the_reference(metrics: Metrics) -> None:
    assert metrics["onnx"].keys() - metrics["pipeline"].keys() == {
        *("integrity.same_tokens", "integrity.checkpoint_tokens"),
        *(f"task.{name}{end}" for name in ("difference", "agreement") for end in ("", "_low", "_high")),
        *("task.lost", "task.gained", "cost.seconds_p50_ratio", "cost.size_bytes_ratio"),
    }


def test_a_candidate_that_answers_nothing_has_no_speed(examples: list[Example]) -> None:
    broken = [Answer(example.id, "", None, 0.001, "RuntimeError: broken") for example in examples]
    good = [Answer(example.id, example.reference, None, 1.0) for example in examples]
    good[0] = Answer("q0", "city 0", 4, 1.0)

    metrics = measure(score(examples, {"pipeline": good, "onnx": broken}), {}, "pipeline", 0)

    assert metrics["onnx"]["task.accuracy"] == 0
    assert not [name for name in metrics["onnx"] if name.startswith("cost.")]
    assert "cost.tokens_per_second" not in metrics["pipeline"]  # nine of ten responses did not count them


def test_answers_that_were_computed_together_have_no_time(examples: list[Example]) -> None:
    together = [Answer(example.id, example.reference, 4, None) for example in examples]
    alone = Answer("q0", "city 0", 4, 2.0)

    metrics = measure(score(examples, {"pipeline": [alone, *together[1:]]}), {}, "pipeline", 0)

    assert metrics["pipeline"]["cost.timed_answers"] == 1
    assert metrics["pipeline"]["cost.answers_per_second"] == 0.5


def test_a_full_name_is_taken_apart_as_it_was_put_together() -> None:
    (name,) = flatten({"onnx": {"cost.latency.p50": 1.0}})

    assert split_name(name) == ("onnx", "cost.latency.p50")


def test_every_metric_has_a_meaning_for_people(metrics: Metrics) -> None:
    names = {name.removesuffix("_low").removesuffix("_high") for figures in metrics.values() for name in figures}

    assert names <= MEANINGS.keys()


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.9788, "share", "97.9 %"),
        (-0.021, "points", "\u22122.1 pp"),
        (1234, "count", "1,234"),
        (0.00456, "seconds", "4.56 ms"),
        (2.0, "seconds", "2 s"),
        (2.37e9, "bytes", "2.37 GB"),
        (0.4152, "ratio", "0.415 \u00d7"),
        (8.86771e-06, "nats", "8.87e-06 nats"),
        (0.123456789, "", "0.123457"),
        (float("nan"), "share", "nan"),
    ],
)
def test_a_figure_is_shown_in_its_unit(value: float, unit: str, text: str) -> None:
    assert show(value, unit).replace("\u00a0", " ") == text
