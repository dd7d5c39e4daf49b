"""Text that is decoded token by token is the text of all tokens."""

import random
from typing import Any

from steps.wrappers.onnx.detokenizer import Detokenizer
from steps.wrappers.onnx.tokenizer import ChatTokenizer

from .asking import HARD_TEXT


def test_text_that_comes_in_steps_is_that_of_transformers(tokenizers: tuple[ChatTokenizer, Any]) -> None:
    ours, theirs = tokenizers
    dice = random.Random(0)
    hard = [i for text in HARD_TEXT for i in theirs(text)["input_ids"]]
    for _ in range(100):
        # Pieces of real text, cut anywhere, among tokens at random, control tokens too.
        start = dice.randrange(len(hard))
        ids = hard[start : start + 12] + [dice.randrange(len(theirs) + 5) for _ in range(8)] + hard[:start][-12:]
        stream, shown = Detokenizer(ours), ""
        for token in ids:
            stream.push(token)
            assert stream.settled.startswith(shown)
            shown = stream.settled
        whole = theirs.decode(ids, skip_special_tokens=True)
        assert whole.startswith(shown)
        stream.finish()
        assert stream.settled == whole == ours.decode(ids)


def test_a_character_of_several_tokens_comes_whole(tokenizers: tuple[ChatTokenizer, Any]) -> None:
    ours, theirs = tokenizers
    stream, seen = Detokenizer(ours), set()
    for token in theirs("hello 東京 👍🏽 world")["input_ids"]:
        stream.push(token)
        seen.update(stream.settled)
    assert seen == set("hello 東京 👍🏽 world")
