"""The server, asked by OpenAI's own client."""

import asyncio
import json

import openai
import pytest

from .conftest import ANSWER, QUESTION, Server


def test_a_chat_is_answered_with_usage_and_the_version(server: Server) -> None:
    answer = server.client().chat.completions.create(model="tiny", messages=QUESTION, temperature=0)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", ANSWER, "stop")
    assert answer.usage.prompt_tokens + answer.usage.completion_tokens == answer.usage.total_tokens
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", "tiny", "tiny/1")


def test_a_stream_gives_the_same_text_in_pieces(server: Server) -> None:
    stream = server.client().chat.completions.create(model="tiny", messages=QUESTION, stream=True)
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == ANSWER
    assert len([piece for piece in pieces if piece]) > 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert {chunk.usage for chunk in chunks} == {None}


def test_a_stream_ends_with_the_usage_if_asked_for_it(server: Server) -> None:
    client = server.client()
    options = {"include_usage": True}
    *_, last = client.chat.completions.create(model="tiny", messages=QUESTION, stream=True, stream_options=options)
    whole = client.chat.completions.create(model="tiny", messages=QUESTION)
    assert (last.choices, last.usage) == ([], whole.usage)


def test_the_asynchronous_client_is_answered_too(server: Server) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            chats = [client.chat.completions.create(model="tiny", messages=QUESTION) for _ in range(8)]
            answers = await asyncio.gather(*chats)
            stream = await client.chat.completions.create(model="tiny", messages=QUESTION, stream=True)
            streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            return [streamed, *(answer.choices[0].message.content for answer in answers)]

    assert asyncio.run(ask()) == [ANSWER] * 9


def test_an_answer_keeps_to_a_json_schema(server: Server) -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Madrid", "Paris"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": schema}}
    answer = server.client().chat.completions.create(model="tiny", messages=QUESTION, response_format=form)
    assert json.loads(answer.choices[0].message.content)["city"] in ("Madrid", "Paris")


def test_several_choices_differ_and_a_seed_repeats_them(server: Server) -> None:
    options = {"model": "tiny", "messages": QUESTION, "n": 3, "temperature": 2, "seed": 5, "max_tokens": 8}
    one, two = (server.client().chat.completions.create(**options) for _ in range(2))
    texts = [choice.message.content for choice in one.choices]
    assert [choice.index for choice in one.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    assert texts == [choice.message.content for choice in two.choices]


def test_several_choices_are_streamed_side_by_side(server: Server) -> None:
    options = {"model": "tiny", "messages": QUESTION, "n": 2, "stream": True}
    texts = ["", ""]
    for chunk in server.client().chat.completions.create(**options):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [ANSWER, ANSWER]


def test_an_answer_ends_before_a_stop_string(server: Server) -> None:
    answer = server.client().chat.completions.create(model="tiny", messages=QUESTION, stop=[" is"])
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == ("The capital of Spain", "stop")


def test_an_answer_ends_at_its_limit(server: Server) -> None:
    answer = server.client().chat.completions.create(model="tiny", messages=QUESTION, max_completion_tokens=2)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 2)


def test_prompts_are_continued(server: Server) -> None:
    client = server.client()
    answer = client.completions.create(model="tiny", prompt=["The capital of", "The capital of"], n=2, max_tokens=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.text for choice in answer.choices}) == 1
    stream = client.completions.create(model="tiny", prompt="The capital of", max_tokens=3, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text


@pytest.mark.parametrize("prompt", [[1, 2], [[1, 2], [3]]])
def test_prompts_of_token_ids_are_refused_as_what_they_are(server: Server, prompt: list) -> None:
    with pytest.raises(openai.BadRequestError, match="send text, not token ids") as refused:
        server.client().completions.create(model="tiny", prompt=prompt)
    assert refused.value.param == "prompt"


def test_log_probabilities_are_given_whole_and_in_a_stream(server: Server) -> None:
    options = {"model": "tiny", "messages": QUESTION, "logprobs": True, "top_logprobs": 2}
    whole = server.client().chat.completions.create(**options).choices[0]
    content = whole.logprobs.content
    assert "".join(each.token for each in content) == whole.message.content == ANSWER
    assert all(each.top_logprobs[0].token == each.token and len(each.top_logprobs) == 2 for each in content)
    assert all(each.logprob <= 0 and bytes(each.bytes).decode() == each.token for each in content)
    chunks = server.client().chat.completions.create(**options, stream=True)
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    assert [each for part in parts if part for each in part.content] == content


def test_completions_have_log_probabilities_in_their_own_form(server: Server) -> None:
    options = {"model": "tiny", "prompt": "The capital of", "max_tokens": 4, "logprobs": 1}
    choice = server.client().completions.create(**options).choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text
    for token, at in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
        assert choice.text[at:].startswith(token)
    likeliest = [max(each.values()) for each in choice.logprobs.top_logprobs]
    assert likeliest == choice.logprobs.token_logprobs, "greedy"


def test_the_model_is_listed(server: Server) -> None:
    (listed,) = server.client().models.list().data
    assert (listed.id, listed.object) == ("tiny", "model")
    assert server.client().models.retrieve("tiny/1").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
        server.client().models.retrieve("other")


@pytest.mark.parametrize(
    ("options", "param", "message"),
    [
        ({"temperature": 3}, "temperature", "temperature=3 is outside 0 to 2"),
        ({"top_logprobs": 3}, "top_logprobs", "top_logprobs=3 needs logprobs=true"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "is not supported"),
        ({"max_tokens": 10**6}, "max_tokens", "max_tokens=1000000"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content", "at least 1 character"),
        ({"extra_body": {"top_q": 1}}, "top_q", "top_q=1 is not supported"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}},
            "response_format.json_schema.schema",
            "",
        ),
        ({"n": 17}, "n", "n=17 answers in all is more than serve.max_waiting=16"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_request_is_refused_by_the_name_of_the_field(
    server: Server, options: dict, param: str | None, message: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        server.client().chat.completions.create(**{"model": "tiny", "messages": QUESTION, "stream": stream, **options})
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert message in refused.value.message
