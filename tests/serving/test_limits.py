"""A server with a key, sites that may ask, and little time."""

import signal
from collections.abc import Iterator

import httpx
import openai
import pytest

from steps.config.command_line import compose_config
from steps.records.errors import ConfigError

from .conftest import ANSWER, QUESTION, Server, Store, serving

KEY = "a key of this test"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def server(models: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    overrides = (
        "serve.host=0.0.0.0",
        "serve.api_key_env=SLM_TEST_KEY",
        "serve.timeout=2",
        "serve.model=models:/tiny/1",
    )
    log = tmp_path_factory.mktemp("limits") / "log"
    with serving(models, log, *overrides, "serve.cors_origins=['https://a.example']", SLM_TEST_KEY=KEY) as running:
        yield running


def test_whoever_has_the_key_is_answered(server: Server) -> None:
    chat = server.client(api_key=KEY).chat.completions.create(model="tiny", messages=QUESTION)
    assert chat.choices[0].message.content == ANSWER


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer "])
def test_how_the_scheme_is_written_does_not_matter(server: Server, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {KEY}"}
    assert httpx.get(f"{server.url}/v1/models", headers=headers, timeout=600).status_code == 200
    for wrong in (KEY, f"Basic {KEY}", f"{scheme} {KEY}x", scheme.strip()):
        response = httpx.get(f"{server.url}/v1/models", headers={"Authorization": wrong}, timeout=600)
        assert response.status_code == 401


def test_whoever_has_another_key_or_none_is_not(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError, match="the key is missing or wrong"):
        server.client(api_key="another").models.list()
    for path in ("/v1/models", "/metrics", "/version", "/openapi.json", "/nowhere"):
        assert httpx.get(f"{server.url}{path}", timeout=600).status_code == 401
    assert (
        httpx.get(f"{server.url}/v1/models", headers={"Authorization": b"Bearer \xe9"}, timeout=600).status_code == 401
    )


def test_the_page_and_what_a_balancer_asks_need_no_key(server: Server) -> None:
    assert [httpx.get(f"{server.url}{path}", timeout=600).status_code for path in ("/", "/health", "/ready")] == [
        200
    ] * 3


def test_an_answer_that_takes_too_long_is_given_up(server: Server) -> None:
    engine = server.engine()
    engine.send_signal(signal.SIGSTOP)
    late = server.post({"messages": QUESTION}, headers=BEARER)
    engine.send_signal(signal.SIGCONT)
    assert (late.status_code, late.headers["x-should-retry"]) == (503, "false")
    assert late.json()["error"]["message"] == "no answer within serve.timeout=2 s"
    assert server.post({"messages": QUESTION}, headers=BEARER).status_code == 200


def test_a_site_that_may_ask_is_told_so_and_no_other(server: Server) -> None:
    # Those of OpenAI's client, in a browser.
    headers = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": headers}
    for origin, allowed in (("https://a.example", "https://a.example"), ("https://b.example", None)):
        response = httpx.options(f"{server.url}/v1/chat/completions", headers={"Origin": origin, **ask})
        assert response.headers.get("access-control-allow-origin") == allowed
        assert response.status_code == (200 if allowed else 400)


def test_a_site_that_may_ask_sees_the_version_and_when_to_try_again(server: Server) -> None:
    answered = server.post({"messages": QUESTION}, headers={**BEARER, "Origin": "https://a.example"})
    assert answered.headers["access-control-expose-headers"] == "x-model-version, retry-after, x-should-retry"


def test_head_is_answered_like_get_without_a_body(server: Server) -> None:
    for path in ("/", "/health", "/ready", "/v1/models"):
        get, head = (httpx.request(method, f"{server.url}{path}", headers=BEARER) for method in ("GET", "HEAD"))
        assert (head.status_code, head.content) == (get.status_code, b"") == (200, b"")
        assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.7", "example.org"])
def test_an_address_that_others_reach_needs_a_key(host: str) -> None:
    with pytest.raises(
        ConfigError, match=r"serve\.host=.* needs a key: set serve\.api_key_env, or listen on 127\.0\.0\.1"
    ):
        compose_config([f"serve.host='{host}'"])
    assert compose_config([f"serve.host='{host}'", "serve.api_key_env=KEY"]).serve.host == host
