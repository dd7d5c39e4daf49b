"""What is taken, what is ignored, and what a mistake is answered."""

import math
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException

from steps.wrappers.onnx.fields import CHAT_FIELDS
from tests.conftest import ROOT

from .asking import ask, load, text_of

MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, r"messages=\[\] is not a list of at least 1 message"),
    ({"messages": "hello"}, "messages='hello' is not a list"),
    ({"messages": ["hello"]}, r"messages\[0\]='hello' is not an object"),
    ({"messages": [{"role": "function", "content": "x"}]}, r"messages\[0\]\.role='function' is not one of system"),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        r"^messages\[0\]\.role='tool' is not supported: the model's chat template has no place for tools: leave them",
    ),
    (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [1]}]},
        r"^messages\[0\]\.tool_calls=\[1\] is not supported: the model's chat template has no place for tools",
    ),
    ({"messages": [{"content": "x"}]}, r"messages\[0\]\.role=None is not one of"),
    ({"messages": [{"role": "user", "content": ""}]}, r"messages\[0\]\.content='' is not a string of at least 1"),
    ({"messages": [{"role": "user", "content": 5}]}, r"messages\[0\]\.content=5 is not a string"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, r"messages\[0\]\.tool_calls=\[1\] is not"),
    (ask("x", temperature=2.5), r"^temperature=2.5 is outside 0 to 2$"),
    (ask("x", temperature=-1), "temperature=-1 is outside 0 to 2"),
    (ask("x", temperature="hot"), "temperature='hot' is not a number"),
    (ask("x", temperature=True), "temperature=True is not a number"),
    (ask("x", top_p=1.1), "top_p=1.1 is outside 0 to 1"),
    (ask("x", top_k=-2), "top_k=-2 is outside -1 to"),
    (ask("x", min_p=0.1), "min_p=0.1 is not supported; only 0 is"),
    (ask("x", ignore_eos="yes"), "ignore_eos='yes' is neither true nor false"),
    (ask("x", ignore_eos=True, response_format={"type": "json_object"}), "cannot be combined with a JSON schema"),
    (ask("x", n=0), "n=0 is outside 1 to 128"),
    (ask("x", n=1.5), "n=1.5 is not an integer"),
    (ask("x", seed=2**64), "seed=18446744073709551616 is outside"),
    (ask("x", max_tokens=0), "max_tokens=0 is outside 1 to 512"),
    (ask("x", max_tokens=510), "max_tokens=510 is more than the 507 tokens that a prompt of 5 tokens leaves in .* 512"),
    (ask("x" * 600), "prompt of 604 tokens leaves no room for an answer in the context of 512 tokens"),
    (ask("x", stop=["a", ""]), r"stop=\['a', ''\] is neither a string nor a list of strings of at least 1 character"),
    *((ask("x", stop=stop), f"stop={stop!r} is neither a string nor a list") for stop in (5, 0, False, {}, "")),
    (ask("x", temperature=math.nan), "^temperature=nan is outside 0 to 2$"),
    (ask("x", top_p=math.nan), "^top_p=nan is outside 0 to 1$"),
    (ask("x", seed=math.nan), "^seed=nan is outside -9223372036854775808 to 9223372036854775807$"),
    (ask("x", stop=math.nan), "stop=nan is neither"),
    (ask("x", **{"\ud800": 5}), r"^\\ud800=5 is not supported"),
    (ask("x", max_token=5), "max_token=5 is not supported; messages, max_tokens, "),
    (ask("x", tools=[{"type": "function"}]), r"^tools=\[.*\] is not supported: the model's chat template has no"),
    (ask("x", tools="f"), "^tools='f' is not a list of functions$"),
    (ask("x", parallel_tool_calls=1), "^parallel_tool_calls=1 is neither true nor false$"),
    (ask("x", frequency_penalty=0.5), "frequency_penalty=0.5 is not supported"),
    (ask("x", stream=True), "stream=True is not for predict; predict_stream streams"),
    (ask("x", response_format={"type": "xml"}), "response_format={'type': 'xml'} is none of"),
    (ask("x", logprobs=0), "^logprobs=0 is neither true nor false$"),
    (ask("x", logprobs=True, top_logprobs=21), "^top_logprobs=21 is outside 0 to 20$"),
    (ask("x", top_logprobs=2), "^top_logprobs=2 needs logprobs=true$"),
    (ask("x", tool_choice="required"), "^tool_choice='required' is not possible without tools$"),
    (ask("x", tool_choice="any"), "^tool_choice='any' is none of 'none', 'auto', 'required', {'type': 'function'"),
    (ask("x", audio={"voice": "alloy"}), "^audio={'voice': 'alloy'} is not supported; messages, max_tokens, "),
    (ask("x", max_tokens=3, max_completion_tokens=4), "^max_completion_tokens=4 and max_tokens=3 differ: give one of"),
    (ask("x", max_completion_tokens=510), "^max_completion_tokens=510 is more than the 507 tokens"),
    (ask("x", chat_template_kwargs="no"), "^chat_template_kwargs='no' is not an object$"),
    (ask("x", chat_template_kwargs={"messages": []}), r"^chat_template_kwargs\.messages=\[\] is not supported"),
    (ask("say \ud83d!"), r"^messages\[0\]\.content has half a surrogate pair, '\\ud83d', at character 4: send whole"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        r"^messages\[0\]\.content\[0\]\.type='image_url' is not supported; text is$",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, "b"]}]},
        r"^messages\[0\]\.content\[1\]='b' is not {'type': 'text', 'text': '...'}$",
    ),
    ({"messages": [{"role": "user", "content": []}]}, r"^messages\[0\]\.content='' is not a string of at least 1"),
    (
        ask("x", response_format={"type": "json_schema", "json_schema": {"schema": {"type": "thing"}}}),
        "response_format.json_schema.schema is not usable: .*thing",
    ),
]


@pytest.mark.parametrize(("row", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_a_mistake_is_one_line_that_names_it_and_the_model_goes_on(
    chat: Any, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        chat.predict(row)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert "\n" not in caught.value.message
    assert chat.predict(ask("hello", max_tokens=1))


def test_a_mistake_among_several_rows_says_in_which(chat: Any) -> None:
    with pytest.raises(MlflowException, match=r"^row 1: n=0 is outside 1 to 128$"):
        chat.predict([ask("x"), ask("x", n=0)])


def test_absent_fields_may_be_null(chat: Any) -> None:
    row = ask("hello", temperature=None, stop=None, n=None, stream=False, seed=None)
    row["messages"][0]["name"] = None
    assert text_of(chat.predict(row)[0]) == text_of(chat.predict(ask("hello"))[0])


def test_a_wrong_model_config_is_refused_at_loading(onnx_folder: Path) -> None:
    with pytest.raises(MlflowException, match=r"model_config.max_token is not known; interface, model_name, "):
        load(onnx_folder, max_token=5)
    with pytest.raises(MlflowException, match=r"model_config.interface='chatty' is neither chat nor prompt"):
        load(onnx_folder, interface="chatty")


def test_a_mistake_in_a_stream_is_an_error(chat: Any) -> None:
    with pytest.raises(MlflowException, match=r"temperature=2.5 is outside 0 to 2"):
        list(chat.predict_stream(ask("x", temperature=2.5)))


def test_half_a_surrogate_pair_in_a_prompt_is_refused_too(prompt: Any) -> None:
    with pytest.raises(MlflowException, match=r"^row 1: prompt has half a surrogate pair, '\\udca1', at character 1: "):
        prompt.predict({"prompt": ["hello", "x\udca1"]})


NEUTRAL = {
    "model": "gpt-4o",
    "user": "u",
    "n": 1,
    "top_k": -1,
    "min_p": 0,
    "repetition_penalty": 1.0,
    "logprobs": False,
    "presence_penalty": 0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "parallel_tool_calls": True,
    "tools": [],
    "tool_choice": "auto",
    "store": False,
    "metadata": {"a": "b"},
    "stream_options": {"include_usage": True},
    "service_tier": "auto",
    "modalities": ["text"],
}


def test_fields_that_ask_for_nothing_are_accepted_and_ignored(chat: Any) -> None:
    expected = text_of(chat.predict(ask("hello"))[0])
    assert text_of(chat.predict(ask("hello", **NEUTRAL))[0]) == expected
    for field, value in NEUTRAL.items():
        assert text_of(chat.predict(ask("hello", **{field: value}, max_tokens=3))[0])


def test_the_table_of_fields_stands_in_the_documentation() -> None:
    text = (ROOT / "docs/reference/serving.md").read_text()
    assert not [field for field in CHAT_FIELDS if f"`{field}`" not in text and f"`{field}: " not in text]


def test_max_completion_tokens_is_max_tokens(chat: Any) -> None:
    (answer,) = chat.predict(ask("hello", max_completion_tokens=5))
    assert answer["usage"]["completion_tokens"] == 5


def test_text_parts_are_joined_by_lines(chat: Any) -> None:
    parts = [{"type": "text", "text": "hello"}, {"type": "text", "text": "world"}]
    answer = chat.predict({"messages": [{"role": "user", "content": parts}]})[0]
    assert text_of(answer) == text_of(chat.predict(ask("hello\nworld"))[0])


def test_a_developer_is_the_system(chat: Any) -> None:
    def answer(role: str) -> str:
        return text_of(
            chat.predict({"messages": [{"role": role, "content": "Be brief."}, *ask("hello")["messages"]]})[0]
        )

    assert answer("developer") == answer("system") != text_of(chat.predict(ask("hello"))[0])


def test_an_empty_system_message_is_rendered_as_it_is(checkpoint: Path, chat: Any) -> None:
    from transformers import AutoTokenizer

    messages = [{"role": "system", "content": ""}, *ask("hello")["messages"]]
    expected = AutoTokenizer.from_pretrained(checkpoint).apply_chat_template(messages, add_generation_prompt=True)
    answer = chat.predict({"messages": messages})[0]
    assert answer["usage"]["prompt_tokens"] == len(expected["input_ids"])
