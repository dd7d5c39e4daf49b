"""The pipeline wrapper behind the same API."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pytest

from steps.build_pipeline_wrapper import ask, log_pipeline
from steps.checkpoint.policy import only_needed
from steps.config.command_line import compose_config
from steps.logged_models.logged_model import logged_folder
from steps.serving.transformers_model import TransformersModel
from tests.conftest import TINY

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


def test_an_answer_that_ignores_end_tokens_has_as_many_tokens_as_were_asked_for(server: Server) -> None:
    options = {"model": "torch", "messages": QUESTION, "max_tokens": 32, "extra_body": {"ignore_eos": True}}
    answer = server.client().chat.completions.create(**options)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 32)


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


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("options", [{}, {"temperature": 1e-40}])
def test_what_the_checkpoint_asks_of_generate_is_no_more_applied_than_by_predict(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    shutil.copytree(TINY, tmp_path / "checkpoint")
    end = json.loads((TINY / "generation_config.json").read_text())["eos_token_id"][-1]
    settings = json.loads((TINY / "config.json").read_text()) | {"eos_token_id": end}  # named here alone
    (tmp_path / "checkpoint" / "config.json").write_text(json.dumps(settings))
    settings = {"eos_token_id": 1, "repetition_penalty": 5.0, "no_repeat_ngram_size": 2}
    (tmp_path / "checkpoint" / "generation_config.json").write_text(json.dumps(settings))
    config, (question,) = compose_config([]), (each["content"] for each in QUESTION)
    with mlflow.start_run(), only_needed(tmp_path / "checkpoint") as checkpoint:
        uri = log_pipeline(checkpoint, question, config.build_pipeline_wrapper)
    with logged_folder(uri) as folder:
        model = TransformersModel(mlflow.pyfunc.load_model(str(folder)), folder)
        (request,) = model.read_requests([{"messages": QUESTION, **options}], None, streaming=False)
        (output,) = model.outputs(request)
        model.engine.submit([output])
        output.finished.wait()
        model.engine.close()
        output.raise_if_failed()
        assert (output.text, output.finish_reason) == (ask(folder, question), "stop") == (ANSWER, "stop")
