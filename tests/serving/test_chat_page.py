"""The chat page, in a real browser."""

import json
import re

import httpx
import pytest

from tests.conftest import program

from .conftest import ANSWER, Server

pytestmark = pytest.mark.slow


def test_the_page_shows_an_answer_as_it_comes_with_its_version(server: Server) -> None:
    done = program("chat_in_browser.py", f"{server.url}/", "What is the capital of Spain?")
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["title"] == "tiny/1"
    kinds, texts = zip(*seen["found"], strict=True)
    assert kinds == ("message user", "message assistant", "note")
    assert texts[:2] == ("What is the capital of Spain?", ANSWER)
    assert re.fullmatch(r"tiny/1 · \d+ tokens in [\d.]+ s", texts[2])
    assert all(ANSWER.startswith(text) for text in seen["texts"])
    assert len(set(seen["texts"])) > 2
    assert seen["console"] == []


def test_the_page_shows_an_error_in_words(server: Server) -> None:
    done = program("chat_in_browser.py", f"{server.url}/", "x" * 5000)
    (_, error) = json.loads(done.stdout)["found"]
    assert error[0] == "message assistant error"
    assert "leaves no room for an answer" in error[1]


def test_the_page_asks_nothing_of_the_network(server: Server) -> None:
    page = httpx.get(f"{server.url}/", timeout=600).text
    assert not re.findall(r"https?://|src=|href=(?!\"data:)|@import", page)
