"""The report of a window."""

from pathlib import Path

from steps.evaluation.gates import Gate
from steps.monitoring.figures import by_prompt_length, figures_of
from steps.monitoring.judging import judge_window
from steps.monitoring.page import Window, write_page

from .requests import BASELINE, answer, refusal


def page(folder: Path, requests: list, title: str = "tiny version 3") -> str:
    figures = figures_of(requests, BASELINE)
    verdicts = judge_window(figures, {"refusals": Gate("refused.share", max=0.1)})
    by_length = by_prompt_length([each for each in requests if each.answered])
    write_page(
        folder / "r.html", Window(title, requests, BASELINE, figures, by_length, verdicts, {"Run": "r1"}, "done")
    )
    return (folder / "r.html").read_text()


def test_it_says_what_failed_and_why_requests_were_refused(tmp_path: Path) -> None:
    text = page(tmp_path, [*(answer(number) for number in range(8)), *(refusal(number) for number in range(8, 12))])
    assert "Failed" in text
    assert "refused.share 0.333333 is above monitor.gates.refusals.max=0.1" in text
    assert "invalid_value: messages" in text
    assert text.count("<svg") == 3
    assert "Share of requests over time. In all: refused 33.3" in text
    assert "<script" not in text


def test_one_request_or_none_that_was_answered_has_a_page_too(tmp_path: Path) -> None:
    assert page(tmp_path, [answer(0)]).count("<svg") == 3
    assert page(tmp_path, [refusal(0)]).count("<svg") == 1


def test_texts_are_no_html(tmp_path: Path) -> None:
    assert "<b>tiny" not in page(tmp_path, [answer(0)], "<b>tiny")
