import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from steps.evaluation.asking import Answer
from steps.evaluation.gates import Gate, judge
from steps.evaluation.metrics import measure
from steps.evaluation.plots import draw
from steps.evaluation.predictions import Prediction, score
from steps.evaluation.report import notable_examples, write_report
from steps.evaluation.tasks import Example

GATES = {
    "onnx_accuracy": Gate("onnx.task.accuracy", min=0.9),
    "onnx_time": Gate("onnx.cost.seconds_p50_ratio", max=1.5),
}


class Page(HTMLParser):
    """The tags of a page with their attributes, and its visible words in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += " " + data.replace("\u00a0", " ")


def report(folder: Path, predictions: list[Prediction], **changes: Any) -> str:
    """Return the HTML of a report on *predictions*."""
    metrics = measure(predictions, "pipeline", 0)
    options: dict[str, Any] = {
        "title": "tiny_phi3",
        "predictions": predictions,
        "metrics": metrics,
        "verdicts": judge(metrics, GATES),
        "figures": draw(predictions, metrics),
        "reference": "pipeline",
        "measured": {"Threads": 2},
        "provenance": {"commit": "f39ac1d28e925b323eae81227eaba4464caced4e"},
    }
    write_report(folder / "report.html", **{**options, **changes})
    return (folder / "report.html").read_text("utf-8")


def test_the_report_tells_its_verdict_before_anything_else(predictions: list[Prediction], tmp_path: Path) -> None:
    words = " ".join(Page(report(tmp_path, predictions)).words.split())

    parts = [
        "Failed",
        "onnx.task.accuracy 0.7 is below evaluate.gates.onnx_accuracy.min=0.9",
        "Gates",
        "onnx_accuracy onnx.task.accuracy 70.0 % at least 90.0 % ✗ failed",
        "onnx_time onnx.cost.seconds_p50_ratio 0.50 \u00d7 at most 1.50 \u00d7 ✓ passed",
        "Figures",
        "Right answers task.accuracy 80.0 % 49.0 to 94.3 % 70.0 % 39.7 to 89.2 %",
        "Plots",
        "Examples worth a look 4 of 10",
        "RuntimeError: out of memory",
        "How it was measured",
        "Threads 2",
        "Provenance",
        "f39ac1d28e925b323eae81227eaba4464caced4e",
    ]
    places = [words.find(part, words.index("Evaluation tiny_phi3")) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)


def test_the_report_loads_nothing_and_runs_nothing(predictions: list[Prediction], tmp_path: Path) -> None:
    html = report(tmp_path, predictions)
    page = Page(html)

    loads = [value for _, attributes in page.tags for name, value in attributes.items() if re.search("src|href", name)]
    assert all(value and value.startswith("#") for value in loads), loads
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert not re.search(r"@import|url\((?!#)", html)
    assert {
        "http-equiv": "Content-Security-Policy",
        "content": "default-src 'none'; style-src 'unsafe-inline'",
    } in [attributes for tag, attributes in page.tags if tag == "meta"]


def test_hostile_text_is_shown_and_never_read_as_html(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'
    example = Example(evil, [{"role": "user", "content": evil}] * 2, evil, "contains")
    answers = {
        "pipeline": [Answer(evil, "no " + evil[:-1], 1, 1.0)],
        "onnx": [Answer(evil, "", 1, 1.0, evil)],
    }

    html = report(tmp_path, score([example], answers), title=evil, measured={evil: evil}, provenance={evil: evil})

    page = Page(html)
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.words.count(evil) >= 9


def test_a_passed_report_without_a_notable_example_says_so(examples: list[Example], tmp_path: Path) -> None:
    answers = {name: [Answer(e.id, e.reference, 1, 1.0) for e in examples] for name in ("pipeline", "onnx")}

    words = Page(report(tmp_path, score(examples, answers))).words

    assert "Every gate is kept." in words
    assert "None: all candidates are right and agree on all 10 examples." in words


def test_a_report_without_gates_is_inconclusive(predictions: list[Prediction], tmp_path: Path) -> None:
    words = Page(report(tmp_path, predictions, verdicts=[])).words

    assert "Inconclusive" in words
    assert "None are configured" in words


def test_a_long_list_of_examples_is_cut_and_says_where_the_rest_is(tmp_path: Path) -> None:
    examples = [Example(f"q{n}", [{"role": "user", "content": "?"}], "yes") for n in range(60)]
    answers = {name: [Answer(e.id, "no", 1, 1.0) for e in examples] for name in ("pipeline", "onnx")}

    page = Page(report(tmp_path, score(examples, answers)))

    assert [tag for tag, _ in page.tags].count("article") == 25
    assert "60 of 60" in page.words
    assert "predictions.jsonl" in page.words


@pytest.mark.parametrize("name", ["fidelity.kl_mean", "task.extra"])
def test_a_metric_that_the_report_does_not_know_is_shown_by_its_name(
    predictions: list[Prediction], tmp_path: Path, name: str
) -> None:
    metrics = measure(predictions, "pipeline", 0, {f"onnx.{name}": 0.125})

    words = " ".join(Page(report(tmp_path, predictions, metrics=metrics)).words.split())

    assert f"{name} \u2013 0.125" in words


def test_what_only_the_build_got_wrong_comes_first(predictions: list[Prediction]) -> None:
    found = [(why, prediction.example.id) for why, prediction in notable_examples(predictions, "pipeline")]

    assert found == [("lost", "q0"), ("lost", "q1"), ("wrong", "q9"), ("gained", "q8")]
