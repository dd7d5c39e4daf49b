"""Traces that the server wrote, read as requests: of one version, not too old, not too many."""

import json
import time

import pytest
from mlflow import MlflowClient

from steps.monitoring import window as window_module
from steps.monitoring.window import read_window
from steps.records import traces as names
from steps.records.errors import StepError
from steps.serving.tracing.record import Record
from steps.serving.tracing.writer import write
from tests.tool_templates import tool


def record(version: str, hours_ago: float, tokens: int, **changes: object) -> Record:
    started = time.time_ns() - int(hours_ago * 3600e9)
    attributes = {
        names.INPUT_TOKENS: tokens,
        names.OUTPUT_TOKENS: 3,
        names.FINISH_REASONS: ["stop"],
        names.MAX_TOKENS: 7,
        names.PROMPT_HASH: "p",
        names.ANSWER_HASHES: ["a"],
    }
    fields: dict[str, object] = {
        "chat": True,
        "model": "echo",
        "version": version,
        "started": started,
        "ended": started + 250_000_000,
        "attributes": attributes,
        "sample": "Да?",
    }
    return Record(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.fixture
def traced(store: str) -> None:
    """Write traces of two versions: of version 1 with 11, 12 and 13 tokens, the first one old; of version 2 two."""
    refused = {names.ERROR: "invalid_value", names.STATUS: 400, names.FIELD: "top_p"}
    write(
        [
            record("1", 30, 11),
            record("1", 2, 12, messages=[("user", "Да?")], answers=["yes"]),
            record("1", 1, 13),
            record("2", 1, 21),
            record("2", 1, 22, attributes=refused, error="invalid_value"),
        ]
    )


def tokens(*options: object) -> list[int | None]:
    return [each.prompt_tokens for each in read_window("echo", *options)]  # type: ignore[arg-type]


@pytest.mark.usefixtures("traced")
def test_only_requests_of_the_version_count_the_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens("1", None, 100) == [11, 12, 13]
    assert tokens("1", 24, 100) == [12, 13]
    assert tokens("1", None, 2) == [12, 13]
    monkeypatch.setattr(window_module, "PAGE", 1)
    assert tokens("1", None, 2) == [12, 13]


@pytest.mark.usefixtures("traced")
def test_a_trace_that_arrives_between_two_pages_makes_no_request_count_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "PAGE", 1)
    search = MlflowClient.search_traces

    def arriving(client: MlflowClient, **given: object) -> object:
        page = search(client, **given)  # type: ignore[arg-type]
        write([record("1", 0, 14)])
        return page

    monkeypatch.setattr(MlflowClient, "search_traces", arriving)
    assert tokens("1", None, 100) == [11, 12, 13]


@pytest.mark.usefixtures("traced")
def test_a_request_is_read_as_it_was_written() -> None:
    old, new, _newest = read_window("echo", "1", None, 100)
    assert (new.seconds, new.status, new.answered, new.finish_reasons) == (0.25, 200, True, ("stop",))
    assert new.max_tokens == 7
    assert (new.script, new.prompt, new.answers) == ("cyrillic", "p", ("a",))
    assert new.messages == ({"role": "user", "content": "Да?"},)
    assert old.messages == ()
    (refused,) = [each for each in read_window("echo", "2", None, 100) if not each.answered]
    assert (refused.refused, refused.reason) == (True, "invalid_value: top_p")


def test_a_chat_with_tools_has_no_messages_because_it_cannot_be_asked_again_as_it_was(store: str) -> None:
    tools = json.dumps([tool("f")])
    write([record("1", 1, 11, messages=[("user", "x")], answers=["y"], tools=tools)])
    (found,) = read_window("echo", "1", None, 100)
    assert (found.messages, found.answered) == ((), True)


@pytest.mark.parametrize(("version", "hours"), [("3", None), ("1", 0.5)])
def test_without_a_trace_one_line_says_how_to_get_some(traced: None, version: str, hours: float | None) -> None:
    with pytest.raises(StepError, match=f"has no trace of version {version} of echo.*serve.trace_share above 0"):
        read_window("echo", version, hours, 100)
