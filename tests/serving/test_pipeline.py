"""The pipeline wrapper behind the same API."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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


def test_the_end_token_has_its_share_of_the_log_probabilities_where_it_is_ignored(server: Server) -> None:
    options = {"model": "torch", "messages": QUESTION, "logprobs": True, "top_logprobs": 1, "max_tokens": 32}
    ended, going_on = (
        server.client().chat.completions.create(**options, extra_body={"ignore_eos": each}).choices[0].logprobs.content
        for each in (False, True)
    )
    for one, other in zip(ended, going_on, strict=False):
        assert (one.token, one.logprob) == (other.token, pytest.approx(other.logprob, abs=1e-6))
    assert going_on[len(ended)].token != going_on[len(ended)].top_logprobs[0].token == "<|end|>"
    assert going_on[len(ended)].logprob < -1


@contextmanager
def loaded(
    folder: Path, config: dict[str, Any], generation_config: dict[str, Any]
) -> Iterator[tuple[TransformersModel, Path]]:
    """Yield the embedded checkpoint, with other settings in *folder*, as -e serve loads it, and its logged folder."""
    shutil.copytree(TINY, folder)
    (folder / "config.json").write_text(json.dumps(json.loads((TINY / "config.json").read_text()) | config))
    (folder / "generation_config.json").write_text(json.dumps(generation_config))
    with mlflow.start_run(), only_needed(folder) as checkpoint:
        uri = log_pipeline(checkpoint, QUESTION[0]["content"], compose_config([]).build_pipeline_wrapper)
    with logged_folder(uri) as model_folder:
        model = TransformersModel(mlflow.pyfunc.load_model(str(model_folder)), model_folder)
        yield model, model_folder
        model.engine.close()


def answers(model: TransformersModel, **options: Any) -> list[tuple[str, str | None]]:
    """Return what *model* answers, and why each answer ended."""
    (request,) = model.read_requests([{"messages": QUESTION, **options}], None, streaming=False)
    outputs = model.outputs(request)
    model.engine.submit(outputs)
    for output in outputs:
        output.finished.wait()
        output.raise_if_failed()
    return [(output.text, output.finish_reason) for output in outputs]


END = json.loads((TINY / "generation_config.json").read_text())["eos_token_id"][-1]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("options", [{}, {"temperature": 1e-40}])
def test_what_the_checkpoint_asks_of_generate_is_no_more_applied_than_by_predict(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    asked = {"eos_token_id": 1, "repetition_penalty": 5.0, "no_repeat_ngram_size": 2}
    with loaded(tmp_path / "checkpoint", {"eos_token_id": END}, asked) as (model, logged):  # END is only in config.json
        assert answers(model, **options) == [(ask(logged, QUESTION[0]["content"]), "stop")] == [(ANSWER, "stop")]


@pytest.mark.usefixtures("store")
def test_a_request_that_samples_samples_as_it_says_and_not_as_the_checkpoint_does(tmp_path: Path) -> None:
    options = {"temperature": 2, "n": 8, "max_tokens": 8, "seed": 3}
    with loaded(tmp_path / "plain", {}, {"eos_token_id": END}) as (model, _):
        expected = answers(model, **options)
    assert len(set(expected)) > 1
    narrow = {"top_k": 1, "top_p": 0.01, "min_p": 1.0, "typical_p": 0.01, "epsilon_cutoff": 0.9, "eta_cutoff": 0.9}
    with loaded(tmp_path / "narrow", {}, {"eos_token_id": END, "do_sample": True, **narrow}) as (model, _):
        assert answers(model, **options) == expected
