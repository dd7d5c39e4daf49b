"""Chunks come while an answer is generated, and add up to it."""

from typing import Any

from .asking import ask


def test_chunks_add_up_to_the_answer(chat: Any) -> None:
    for row in (ask("hello", n=2, temperature=1, seed=1), ask("what is"), ask("x", max_tokens=1, stream=True)):
        chunks = list(chat.predict_stream(row))
        (answer,) = chat.predict({**row, "stream": False})
        assert {(chunk["object"], chunk["model"]) for chunk in chunks} == {("chat.completion.chunk", "tiny")}
        assert len({chunk["id"] for chunk in chunks}) == 1
        for expected in answer["choices"]:
            mine = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == expected["index"]]
            assert mine[0]["delta"]["role"] == "assistant"
            assert "".join(c["delta"].get("content", "") for c in mine) == expected["message"]["content"]
            assert [c["finish_reason"] for c in mine] == [None] * (len(mine) - 1) + [expected["finish_reason"]]
        assert [chunk.get("usage") for chunk in chunks] == [None] * (len(chunks) - 1) + [answer["usage"]]


def test_chunks_come_while_the_answer_is_generated(chat: Any) -> None:
    stream = chat.predict_stream(ask("hello", max_tokens=500))
    first = next(stream)
    assert chat.unwrap_python_model().engine.unfinished == 1
    assert len([first, *stream]) > 2


def test_a_short_answer_does_not_wait_for_a_long_one(chat: Any) -> None:
    stream = chat.predict_stream(ask("hello", max_tokens=500, temperature=2.0, top_p=0.99, seed=1))
    next(stream)
    (short,) = chat.predict(ask("what is", max_tokens=2))
    assert short["usage"]["completion_tokens"] == 2
    engine = chat.unwrap_python_model().engine
    assert engine.unfinished == 1  # it is still generating the long one
    stream.close()
