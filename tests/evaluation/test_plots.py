import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import pytest

from steps.evaluation.asking import Answer
from steps.evaluation.metrics import measure
from steps.evaluation.plots import INK, draw, inline_svg, save
from steps.evaluation.predictions import Prediction, score
from steps.evaluation.tasks import Example


def texts(svg: str) -> str:
    return " ".join(ET.fromstring(svg).itertext()).replace("\u00a0", " ")


def test_the_plots_name_every_candidate_with_its_figure(predictions: list[Prediction]) -> None:
    figures = draw(predictions, measure(predictions, "pipeline", 0))

    accuracy, latency = texts(inline_svg(figures["accuracy"])), texts(inline_svg(figures["latency"]))
    assert all(part in accuracy for part in ("pipeline", "80.0 %", "onnx", "70.0 %"))
    assert "pipeline, median 2 s" in latency
    assert "onnx, median 1 s" in latency


def test_a_candidate_that_answers_nothing_still_gets_its_plots(examples: list[Example]) -> None:
    broken = [Answer(example.id, "", None, 0.001, "RuntimeError: broken") for example in examples]
    predictions = score(examples, {"pipeline": broken})

    assert list(draw(predictions, measure(predictions, "pipeline", 0))) == ["accuracy"]


def test_an_inline_plot_takes_the_colours_of_its_page(predictions: list[Prediction]) -> None:
    svg = inline_svg(draw(predictions, measure(predictions, "pipeline", 0))["accuracy"])

    assert "var(--ink)" in svg
    assert INK not in svg


def test_plots_are_saved_as_png_and_svg_and_are_the_same_again(predictions: list[Prediction], tmp_path: Path) -> None:
    metrics = measure(predictions, "pipeline", 0)
    saved = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        saved.append([file.read_bytes() for file in save(draw(predictions, metrics), tmp_path / name)])

    files = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert files == ["accuracy.png", "accuracy.svg", "latency.png", "latency.svg"]
    assert saved[0] == saved[1]


@pytest.mark.parametrize("name", ["$x$ & <b>", "onnx_int8"])
def test_a_candidates_name_is_drawn_as_it_is(examples: list[Example], name: str) -> None:
    predictions = score(examples, {name: [Answer(example.id, "x", 1, 1.0) for example in examples]})

    assert name in texts(inline_svg(draw(predictions, measure(predictions, name, 0))["accuracy"]))


def test_drawing_leaves_matplotlibs_settings_alone(
    predictions: list[Prediction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mpl.rcParams, "font.size", 33.0)
    before = dict(mpl.rcParams)

    save(draw(predictions, measure(predictions, "pipeline", 0)), tmp_path)

    assert dict(mpl.rcParams) == before
