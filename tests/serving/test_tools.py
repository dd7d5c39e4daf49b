"""Tool calls, asked for by OpenAI's own client.

The embedded model was taught none: it makes those that are forced. What models of other families write is recited.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import openai
import pytest
from mlflow import MlflowClient

from steps.build_onnx_wrapper import log_wrapper
from steps.build_pipeline_wrapper import log_pipeline
from steps.config.command_line import compose_config
from tests.conftest import ROOT, TINY
from tests.servers import serving as mlflow_serving
from tests.tool_templates import tool

from .conftest import QUESTION, Server, Store, serving, wait_until
from .test_openapi import test_generated_requests_get_what_the_description_says as test_schemathesis  # noqa: F401
from .test_traces import attributes, traces_of

pytestmark = pytest.mark.slow

TEMPLATE = """{%- if answer %}{{ answer }}{{ '<|endoftext|>' }}{%- endif %}\
{%- for tool in tools or [] %}{{- tool.function.name + ' <tool_call>' }}{%- endfor %}{%- for message in messages %}\
{{- '<|user|>' if message.role == 'tool' else '<|' + message.role + '|>' }}{{- '\\n' + message.content }}\
{%- for call in message.tool_calls or [] %}{{- '<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}\
{%- endfor %}{{- '<|end|>\\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|assistant|>\\n' }}{%- endif %}"""
"""As short as the embedded model's context of 512 tokens asks for."""

WEATHER = tool("get_weather", city={"enum": ["Madrid", "Paris"]}, days={"type": "integer", "minimum": 1, "maximum": 9})
TIME = tool("get_time", zone={"$ref": "#/$defs/Zone"})
TIME["function"]["parameters"]["$defs"] = {"Zone": {"enum": ["UTC", "CET"]}}  # type: ignore[index]
TOOLS: Any = [WEATHER, TIME]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Madrid"}}\n</tool_call>'


@pytest.fixture(scope="module")
def models(fp32: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Return a registry of models that have tools in their template: real ones, and one that recites."""
    folder = tmp_path_factory.mktemp("tools")
    for source, name in ((fp32, "onnx"), (TINY, "torch")):
        shutil.copytree(source, folder / name)
        (folder / name / "chat_template.jinja").write_text(TEMPLATE)
        config = json.loads((folder / name / "tokenizer_config.json").read_text())
        config.pop("chat_template", None)
        (folder / name / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/store.db")
        experiment = mlflow.create_experiment("tools", artifact_location=str(folder / "artifacts"))
        config = compose_config(["onnx=fp32_cpu", "build_onnx_wrapper.max_tokens=64"])
        client = MlflowClient()
        with mlflow.start_run(experiment_id=experiment):
            uris = {
                "tiny": log_wrapper(folder / "onnx", "tiny", config.question, config.build_onnx_wrapper),
                "reciting": log_wrapper(folder / "onnx", "reciting", config.question, config.build_onnx_wrapper),
                "torch": log_pipeline(folder / "torch", config.question, config.build_pipeline_wrapper),
            }
        for name, uri in uris.items():
            client.create_registered_model(name)
            client.create_model_version(name, uri, model_id=uri.removeprefix("models:/"))
        where = client.get_logged_model(uris["reciting"].removeprefix("models:/")).artifact_location
        engine = Path(where.removeprefix("file://")) / "artifacts" / "wrapper" / "engine" / "__main__.py"
        engine.write_text((ROOT / "tests" / "programs" / "reciting_engine.py").read_text())
    return Store(f"sqlite:///{folder}/store.db")


@pytest.fixture(scope="module")
def reciting(models: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("reciting") / "log"
    with serving(models, log, "serve.model=models:/reciting/1", "serve.trace_text=true") as running:
        yield running


def ask(server: Server, **options: Any) -> Any:
    """Return the choice, or with stream=True the chunks, of the answer to a question with TOOLS."""
    answer = options.pop("answer", None)
    body = {"chat_template_kwargs": {"answer": answer}} if answer else {}
    given = {"model": "x", "messages": QUESTION, "tools": TOOLS, "max_tokens": 150, "extra_body": body, **options}
    answered = server.client().chat.completions.create(**given)
    return list(answered) if options.get("stream") else answered.choices[0]


@pytest.mark.parametrize("name", ["get_weather", "get_time"])
def test_a_function_that_is_named_is_called_with_arguments_of_its_schema(server: Server, name: str) -> None:
    choice = ask(server, tool_choice={"type": "function", "function": {"name": name}})
    (call,) = choice.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert (call.type, call.function.name, choice.message.content) == ("function", name, None)
    assert call.id.startswith("call_")
    assert choice.finish_reason == "tool_calls"
    if name == "get_weather":
        assert set(arguments) == {"city", "days"}
        assert (arguments["city"] in ("Madrid", "Paris"), arguments["days"] in range(1, 10)) == (True, True)
    else:
        assert arguments in ({"zone": "UTC"}, {"zone": "CET"})


def test_required_makes_a_call_of_one_of_the_tools_in_every_choice(server: Server) -> None:
    options = {"model": "x", "messages": QUESTION, "tools": TOOLS, "tool_choice": "required", "n": 3, "temperature": 2}
    answer = server.client().chat.completions.create(**options)
    calls = [call for choice in answer.choices for call in choice.message.tool_calls]
    assert len(calls) == len({call.id for call in calls}) == 3
    assert {call.function.name for call in calls} <= {"get_weather", "get_time"}
    free = server.client().chat.completions.create(**{**options, "tool_choice": "auto", "n": 1})
    assert answer.usage.prompt_tokens > free.usage.prompt_tokens, "the prompt ends with what begins a call"


def test_a_forced_call_is_streamed_as_its_name_and_its_arguments(server: Server) -> None:
    whole = ask(server, tool_choice="required", seed=1).message.tool_calls[0]
    chunks = ask(server, tool_choice="required", seed=1, stream=True)
    begun, rest = (each.choices[0].delta.tool_calls[0] for each in chunks if each.choices[0].delta.tool_calls)
    assert (begun.index, begun.type, begun.function.name, begun.function.arguments) == (
        *(0, "function", whole.function.name, ""),
    )
    assert begun.id.startswith("call_")
    assert (rest.index, rest.function.arguments) == (0, whole.function.arguments)
    assert [each.choices[0].finish_reason for each in chunks][-1] == "tool_calls"
    assert "".join(each.choices[0].delta.content or "" for each in chunks) == ""


def test_the_conversation_goes_on_with_what_the_client_got_and_the_result(server: Server) -> None:
    message = ask(server, tool_choice="required").message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "It is warm."}
    client = server.client()
    shorter, longer = (
        client.chat.completions.create(model="x", messages=[*QUESTION, message, *more], tools=TOOLS).usage.prompt_tokens
        for more in ([], [result])
    )
    assert longer > shorter


def test_without_a_call_an_answer_is_text_and_none_hides_the_tools(server: Server) -> None:
    choice = ask(server)
    assert (choice.message.tool_calls, choice.finish_reason == "tool_calls") == (None, False)
    told, plain, hidden = (
        server.client().chat.completions.create(model="x", messages=QUESTION, **each).usage.prompt_tokens
        for each in ({"tools": TOOLS}, {}, {"tools": TOOLS, "tool_choice": "none"})
    )
    assert told > plain == hidden


@pytest.mark.parametrize("stream", [False, True])
def test_calls_are_read_from_what_the_model_writes_and_marks_are_not_shown(reciting: Server, stream: bool) -> None:
    answer = f"Let me look.\n{CALL}\n{CALL.replace('Madrid', 'Paris')}"
    found = ask(reciting, answer=answer, stream=stream)
    if stream:
        deltas = [each.choices[0].delta for each in found]
        content = "".join(each.content or "" for each in deltas)
        assert len([each for each in deltas if each.content]) > 2, "text is not held back"
        calls = [each.tool_calls[0] for each in deltas if each.tool_calls]
        assert [each.index for each in calls] == [0, 0, 1, 1]
        made = [(one.function.name, two.function.arguments) for one, two in zip(calls[::2], calls[1::2], strict=True)]
        reason = found[-1].choices[0].finish_reason
    else:
        content, reason = found.message.content, found.finish_reason
        made = [(each.function.name, each.function.arguments) for each in found.message.tool_calls]
    assert (content, reason) == ("Let me look.", "tool_calls")
    assert made == [("get_weather", '{"city": "Madrid"}'), ("get_weather", '{"city": "Paris"}')]


def test_only_one_call_is_given_without_parallel_tool_calls(reciting: Server) -> None:
    assert len(ask(reciting, answer=f"{CALL}\n{CALL}").message.tool_calls) == 2
    assert len(ask(reciting, answer=f"{CALL}\n{CALL}", parallel_tool_calls=False).message.tool_calls) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("cut", "reason"), [(True, "length"), (False, "stop")])
def test_half_a_call_and_a_malformed_one_are_text(reciting: Server, stream: bool, cut: bool, reason: str) -> None:
    answer = CALL if cut else CALL.replace("}}", "}")
    options = {"max_tokens": 20} if cut else {}
    found = ask(reciting, answer=answer, stream=stream, **options)
    if stream:
        assert not [each for each in found if each.choices[0].delta.tool_calls]
        text = "".join(each.choices[0].delta.content or "" for each in found)
        assert found[-1].choices[0].finish_reason == reason
    else:
        assert (found.message.tool_calls, found.finish_reason) == (None, reason)
        text = found.message.content
    assert text.startswith("<tool_call>\n{") and (answer.startswith(text) if cut else answer == text)


def test_a_whole_call_before_the_limit_is_given_and_the_limit_stated(reciting: Server) -> None:
    whole = ask(reciting, answer=CALL, logprobs=False)
    tokens = reciting.client().chat.completions.create(
        model="x", messages=QUESTION, tools=TOOLS, extra_body={"chat_template_kwargs": {"answer": CALL}}
    ).usage.completion_tokens  # fmt: skip
    cut = ask(reciting, answer=f"{CALL}\n{CALL}", max_tokens=tokens + 8)
    assert (len(cut.message.tool_calls), cut.finish_reason) == (1, "length")
    assert cut.message.tool_calls[0].function == whole.message.tool_calls[0].function
    assert cut.message.content.startswith("<tool_call>")


def test_traces_and_metrics_say_how_an_answer_with_calls_ended(reciting: Server, models: Store) -> None:
    stopped = reciting.metric("vllm:request_success_total", finished_reason="stop")
    message = ask(reciting, answer=CALL).message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "It is warm."}
    ask(reciting, answer="It is warm.", messages=[*QUESTION, message, result])
    asked = reciting.metric("slm:responses_total", path="/v1/chat/completions")
    wait_until(lambda: reciting.metric("slm:traces_written_total") == asked)
    assert reciting.metric("vllm:request_success_total", finished_reason="stop") == stopped + 2
    first, second = (attributes(trace) for trace in traces_of(models.uri, "reciting")[-2:])
    assert first["gen_ai.response.finish_reasons"] == ["tool_calls"]
    assert second["gen_ai.response.finish_reasons"] == ["stop"]
    assert [each["function"]["name"] for each in first["gen_ai.tool.definitions"]] == ["get_weather", "get_time"]
    assert [each["role"] for each in second["mlflow.spanInputs"]["messages"]] == ["user", "assistant", "tool"]
    assert "get_weather" in second["mlflow.spanInputs"]["messages"][1]["content"]


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice.function.name", "get_time"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice", "is not possible without tools"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type", "function is"),
        ({"tools": [tool("f", a={"type": "no"})], "tool_choice": "required"}, "tools", "is not usable"),
        ({"response_format": {"type": "json_object"}}, "response_format", "together with tools"),
        ({"messages": [*QUESTION, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id", "the id of a call"),
    ],
)
def test_a_wrong_request_is_refused_by_the_name_of_the_field(
    server: Server, options: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, **options)
    assert refused.value.param == param
    assert message in refused.value.message
    assert "\n" not in refused.value.message


def test_tools_that_are_nested_too_deeply_are_the_caller_s_mistake(server: Server) -> None:
    nested: dict[str, Any] = {}
    for at in range(800):
        nested = {"items": nested}
        if at not in (40, 400, 799):
            continue
        answer = server.post({"messages": QUESTION, "tools": [tool("f", a=nested)], "tool_choice": "required"})
        assert answer.status_code in (200, 400), answer.text
    body = f'{{"messages": [{{"role": "user", "content": "x"}}], "tools": {"[" * 900}{"]" * 900}}}'
    headers = {"content-type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=body, headers=headers, timeout=600)
    assert answer.status_code == 400, answer.text


def test_mlflow_models_serve_makes_and_reads_calls_too(models: Store) -> None:
    with mlflow_serving("models:/tiny/1", models.uri) as url:
        body = {"messages": QUESTION, "tools": TOOLS, "tool_choice": "required"}
        (answer,) = httpx.post(f"{url}/invocations", json=body, timeout=600).json()
    (choice,) = answer["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert call["function"]["name"] in ("get_weather", "get_time")
    assert json.loads(call["function"]["arguments"])


def test_predict_stream_gives_calls_as_the_server_does(models: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", models.uri)
    model = mlflow.pyfunc.load_model("models:/reciting/1")
    said = {"messages": QUESTION, "tools": TOOLS, "chat_template_kwargs": {"answer": f"I look. {CALL}"}}
    chunks = list(model.predict_stream({**said, "max_tokens": 100}))
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    (begun,), (rest,) = (each["tool_calls"] for each in deltas if "tool_calls" in each)
    assert "".join(each.get("content", "") for each in deltas) == "I look."
    assert (begun["function"]["name"], rest["function"]["arguments"]) == ("get_weather", '{"city": "Madrid"}')
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_the_pipeline_wrapper_reads_tools_but_forces_no_call(models: Store, server: Server, tmp_path: Path) -> None:
    with serving(models, tmp_path / "log", "serve.model=models:/torch/1") as torch:
        same = [
            each.client().chat.completions.create(model="x", messages=QUESTION, tools=TOOLS).usage.prompt_tokens
            for each in (server, torch)
        ]
        assert same[0] == same[1]
        with pytest.raises(openai.BadRequestError, match="tool_choice is not supported by the pipeline wrapper"):
            ask(torch, tool_choice="required")
