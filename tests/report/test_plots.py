import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from steps.evaluation.asking import Answer
from steps.evaluation.cost import Timing
from steps.evaluation.fidelity import TokenFidelity
from steps.evaluation.predictions import Prediction, score
from steps.evaluation.tasks import Example
from steps.report.plots import draw
from steps.report.style import INK, inline_svg, save
from tests.results import results_of


def texts(svg: str) -> str:
    return " ".join(ET.fromstring(svg).itertext()).replace("\u00a0", " ")


def test_the_plots_name_every_candidate_with_its_figure(predictions: list[Prediction]) -> None:
    figures = draw(results_of(predictions))

    accuracy, latency = texts(inline_svg(figures["accuracy"])), texts(inline_svg(figures["latency"]))
    assert all(part in accuracy for part in ("pipeline", "80.0 %", "onnx", "70.0 %"))
    assert "pipeline, median 2 s" in latency
    assert "onnx, median 1 s" in latency


def test_a_candidate_that_answers_nothing_still_gets_its_plots(examples: list[Example]) -> None:
    broken = [Answer(example.id, "", None, 0.001, "RuntimeError: broken") for example in examples]
    predictions = score(examples, {"pipeline": broken})

    assert list(draw(results_of(predictions))) == ["accuracy"]


def test_an_inline_plot_takes_the_colours_of_its_page(predictions: list[Prediction]) -> None:
    svg = inline_svg(draw(results_of(predictions))["accuracy"])

    assert "var(--ink)" in svg
    assert INK not in svg


def test_plots_are_saved_as_png_and_svg_and_are_the_same_again(predictions: list[Prediction], tmp_path: Path) -> None:
    saved = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        save(draw(results_of(predictions)), tmp_path / name)
        saved.append([file.read_bytes() for file in sorted((tmp_path / name).iterdir())])

    files = sorted(file.name for file in (tmp_path / "first").iterdir())
    assert files == [f"{name}.{kind}" for name in ("accuracy", "flips", "latency") for kind in ("png", "svg")]
    assert saved[0] == saved[1]


@pytest.mark.parametrize("name", ["$x$ & <b>", "onnx_int8"])
def test_a_candidates_name_is_drawn_as_it_is(examples: list[Example], name: str) -> None:
    predictions = score(examples, {name: [Answer(example.id, "x", 1, 1.0) for example in examples]})

    assert name in texts(inline_svg(draw(results_of(predictions))["accuracy"]))


def test_drawing_leaves_matplotlibs_settings_alone(
    predictions: list[Prediction], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mpl.rcParams, "font.size", 33.0)
    before = dict(mpl.rcParams)

    save(draw(results_of(predictions)), tmp_path)

    assert dict(mpl.rcParams) == before


def tokens(count: int) -> TokenFidelity:
    """Return *count* tokens of which the build thinks nearly what its reference does."""
    rng = np.random.default_rng(0)
    reference = rng.exponential(2.0, count)
    build = np.abs(reference + rng.normal(0, 0.2, count))
    return TokenFidelity(
        np.arange(count) // 20, reference, build, rng.lognormal(-6, 2, count), rng.random(count) > 0.02
    )


def test_what_was_measured_is_drawn_and_what_was_not_is_left_out(predictions: list[Prediction]) -> None:
    timings = [
        Timing(name, length, batch, 16, length / speed, (length + 16) / speed)
        for name, speed in (("pipeline", 100.0), ("onnx", 300.0))
        for length, batch in ((32, 1), (256, 1), (32, 4))
    ]

    assert list(draw(results_of(predictions))) == ["accuracy", "flips", "latency"]
    assert {"kl", "likelihood"} <= set(draw(results_of(predictions, fidelity={"onnx": tokens(100)})))
    assert {"first_token", "throughput"} <= set(draw(results_of(predictions, timings=timings)))


def test_a_plot_of_many_tokens_stays_small(predictions: list[Prediction]) -> None:
    figures = draw(results_of(predictions, fidelity={"onnx": tokens(100_000)}))

    sizes = {name: len(inline_svg(figure)) for name, figure in figures.items()}

    assert max(sizes.values()) < 200_000, sizes


def test_a_plot_tells_in_words_what_it_shows(predictions: list[Prediction]) -> None:
    found = tokens(1_000)
    found.kl[:3] = np.nan
    timings = [Timing("onnx", 32, batch, 10, 0.1, seconds) for batch in (1, 4) for seconds in (0.5, 1.0, 2.0)]

    figures = draw(results_of(predictions, fidelity={"onnx": found}, timings=timings))

    svgs = {name: ET.fromstring(inline_svg(figure)) for name, figure in figures.items()}
    told = {name: svg.attrib["aria-label"].replace("\u00a0", " ") for name, svg in svgs.items()}
    assert {svg.attrib["role"] for svg in svgs.values()} == {"img"}
    assert told["accuracy"].startswith("Right answers: pipeline 80.0 %, interval 49.0 % to 94.3 %; onnx 70.0 %")
    assert told["flips"] == "Flips: onnx 2 lost; onnx 1 gained."
    assert "3 not finite" in told["kl"]
    assert "pipeline, median 2 s" in told["latency"]
    assert "onnx 100 ms at 32" in told["first_token"]
    assert "onnx 10 / s at 1, 40 / s at 4" in told["throughput"]


def test_plots_of_one_page_share_no_id(predictions: list[Prediction]) -> None:
    figures = draw(results_of(predictions, fidelity={"onnx": tokens(100)}))

    ids = [
        part.attrib["id"]
        for f in figures.values()
        for part in ET.fromstring(inline_svg(f)).iter()
        if "id" in part.attrib
    ]

    assert len(ids) == len(set(ids))
