"""The pipeline wrapper behind the same API."""

from collections.abc import Iterator

import httpx
import pytest

from .conftest import ANSWER, QUESTION, Server, Store, serving, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(models: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(models, tmp_path_factory.mktemp("torch") / "log", "serve.model=models:/torch/1") as running:
        yield running


def test_it_answers_streams_and_repeats_a_seed(server: Server) -> None:
    client = server.client()
    assert client.chat.completions.create(model="torch", messages=QUESTION).choices[0].message.content == ANSWER
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(model="torch", messages=QUESTION, stream=True)
    ]
    assert "".join(pieces) == ANSWER
    assert len([piece for piece in pieces if piece]) > 3
    options = {"model": "torch", "messages": QUESTION, "temperature": 2, "seed": 3, "max_tokens": 16, "n": 16}
    answers = [client.chat.completions.create(**options) for _ in range(2)]
    one, two = ([choice.message.content for choice in answer.choices] for answer in answers)
    assert one == two
    assert len(set(one)) > 1


def test_it_states_the_log_probabilities_that_the_checkpoint_has_whatever_the_temperature(server: Server) -> None:
    options = {"model": "torch", "messages": QUESTION, "logprobs": True, "top_logprobs": 1, "max_tokens": 3}
    greedy, sampled = (
        server.client().chat.completions.create(**options, temperature=each, seed=1).choices[0].logprobs.content
        for each in (0, 1e-3)
    )
    assert [each.token for each in greedy] == ["The", " capital", " of"]
    assert [each.logprob for each in greedy] == pytest.approx([each.logprob for each in sampled], abs=1e-4)
    assert [each.top_logprobs[0].logprob for each in greedy] == [each.logprob for each in greedy]


def test_it_refuses_what_it_cannot_and_what_the_onnx_wrapper_refuses(server: Server) -> None:
    for options, param in (({"response_format": {"type": "json_object"}}, "response_format"), ({"n": 0}, "n")):
        response = server.post({"messages": QUESTION, **options})
        assert response.status_code == 400
        assert response.json()["error"]["param"] == param


def test_a_client_that_hangs_up_stops_it(server: Server) -> None:
    body = {"messages": QUESTION, "temperature": 2, "n": 16, "max_tokens": 400}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=httpx.Timeout(600, read=0.1))
    assert server.post({"messages": QUESTION}).status_code == 200
    wait_until(lambda: server.metric("vllm:num_requests_running") == 0)
    assert server.metric("vllm:request_success_total", finished_reason="abort") > 0
