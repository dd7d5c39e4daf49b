"""The ladder as a line for the terminal, as a table, and as a plot."""

from typing import Any

from steps.report.ladder import HEAD, draw, measured, progress, rows, table
from steps.report.style import inline_svg


def rung(name: str, kl: float, size: float, verdict: str, **changes: Any) -> dict[str, Any]:
    figures = {
        "fidelity.perplexity_ratio": 1 + kl,
        "fidelity.kl_mean": kl,
        "fidelity.same_top": 0.9,
        "cost.size_bytes": size * 269e6,
        "cost.size_ratio": size,
        "cost.decode_tokens_per_second": 100 / size,
        "cost.build_seconds": 10.2,
        "cost.measure_seconds": 20.2,
    }
    return {
        "recipe": {"name": name},
        "verdict": verdict,
        "reason": f"because of {name}",
        "run_id": "1",
        "reused": False,
        "figures": figures,
    } | changes


LADDER = {
    "chosen": "int8_shared",
    "questions": 60,
    "text": None,
    "gates": {"kl": {"metric": "onnx.fidelity.kl_mean", "max": 0.1}},
    "rungs": [
        rung("int4", 0.38, 0.32, "failed"),
        rung("int4_mixed", 0.19, 0.42, "skipped", figures={}),
        rung("int8_shared", 0.006, 0.51, "passed", reused=True),
    ],
}


def test_every_rung_has_a_row_with_a_cell_for_each_figure() -> None:
    assert [len(cells) for cells in rows(LADDER)] == [len(HEAD)] * 3
    assert rows(LADDER)[0][2:] == ["0.32", "1.3800", "0.3800", "90.0%", "312", "30", "failed"]
    assert rows(LADDER)[1][1:] == [""] * 7 + ["skipped"]


def test_the_table_says_why_each_rung_was_not_taken() -> None:
    assert "- int4: because of int4\n" in table(LADDER)
    assert "- int4_mixed: because of int4_mixed\n" in table(LADDER)


def test_a_rung_is_one_line_and_says_whether_it_was_measured_before() -> None:
    lines = [progress(each) for each in LADDER["rungs"]]  # type: ignore[attr-defined]
    assert lines[0].endswith("312 tokens/s, 30 s: failed")
    assert lines[1].endswith("skipped: because of int4_mixed")
    assert lines[2].endswith("passed (measured before)")
    assert not any("\n" in line for line in lines)


def test_the_plot_names_the_measured_recipes_and_says_in_words_what_it_shows() -> None:
    svg = inline_svg(draw(LADDER))
    assert svg.count(">int8_shared<") == 2
    assert ">int4_mixed<" not in svg
    assert "KL divergence of each recipe from the checkpoint, against its size" in svg


def test_a_ladder_of_which_nothing_could_be_measured_is_still_a_table() -> None:
    skipped = LADDER | {"rungs": [rung("int4", 0, 1, "failed", figures={})], "chosen": None}
    assert "| int4 |" in table(skipped)
    assert "because of int4" in table(skipped)


def test_a_build_that_computes_no_number_is_in_the_table_and_not_in_the_plot() -> None:
    broken = rung("int4", 0.3, 0.3, "failed")
    broken["figures"] |= {"fidelity.kl_mean": None, "fidelity.perplexity_ratio": None}
    assert "| int4 | 80.70\xa0MB | 0.30 |  |  |" in table(LADDER | {"rungs": [broken]})
    assert measured(LADDER | {"rungs": [broken]}) == []
    assert measured(LADDER | {"rungs": [broken, LADDER["rungs"][2]]}) == [LADDER["rungs"][2]]  # type: ignore[index]
