"""What fails around a step has a line that says whose fault it is, and what to do."""

import requests

from steps.safety.outages import explanation


def an_answer(status: int, reason: str) -> requests.Response:
    response = requests.Response()
    response.status_code, response.reason, response.url = status, reason, "http://me:s3cret@127.0.0.1:9/artifacts/x"
    return response


def test_a_server_that_refuses_is_not_said_to_be_away() -> None:
    try:
        an_answer(413, "Content Too Large").raise_for_status()
    except requests.HTTPError as error:
        line = explanation(error) or ""
    assert "refuses: 413 Client Error: Content Too Large" in line
    assert "s3cret" not in line


def test_a_server_without_an_answer_is_away() -> None:
    line = explanation(requests.ConnectionError("refused")) or ""
    assert "does not answer: start it" in line


def test_a_bug_has_no_line() -> None:
    assert explanation(KeyError("x")) is None
