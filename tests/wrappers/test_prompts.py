"""interface=prompt: strings in, strings out."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from .asking import ask, text_of


def test_every_prompt_is_answered(chat: Any, prompt: Any) -> None:
    texts = ["<|user|>\nhello<|end|>\n<|assistant|>\n", "<|user|>\nwhat is<|end|>\n<|assistant|>\n"]
    expected = [text_of(answer) for answer in chat.predict([ask("hello"), ask("what is")])]
    assert prompt.predict({"prompt": texts[0]}) == expected[:1]
    assert prompt.predict({"prompt": texts}) == expected
    assert prompt.predict(pd.DataFrame({"prompt": texts})) == expected
    assert "".join(prompt.predict_stream({"prompt": texts[1]})) == expected[1]


def test_prompts_take_params_with_defaults(prompt: Any) -> None:
    def answer(**params: Any) -> str:
        return str(prompt.predict({"prompt": "hello"}, params=params)[0])

    assert answer() == answer(temperature=0.0, top_p=1.0, top_k=0, stop=[], seed=7)
    assert answer(temperature=1.5) == answer(temperature=1.5, seed=0) != answer(temperature=1.5, seed=1)
    assert answer(stop=[answer()[3:6]]) == answer()[: answer().index(answer()[3:6])]
    assert len(answer(max_tokens=2)) < len(answer())
    with pytest.raises(MlflowException, match=r"^max_tokens=0 is outside 1 to 512$"):
        answer(max_tokens=0)
    with pytest.raises(MlflowException, match=r"^row 1: prompt is empty: at least 1 token is needed$"):
        prompt.predict({"prompt": ["hello", ""]})


def test_a_prompt_that_ends_with_the_pad_token_is_read_whole(prompt: Any, checkpoint: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    ids = tokenizer("hello<|endoftext|>", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(checkpoint)
        answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
    expected = tokenizer.decode(answer[0][ids.shape[1] :], skip_special_tokens=True)
    assert prompt.predict({"prompt": "hello<|endoftext|>"}, params={"max_tokens": 20}) == [expected]
