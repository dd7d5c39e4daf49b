"""Logits come from the very weights that answer, on ids that a chat and its answer really have."""

from pathlib import Path
from typing import cast

import mlflow
import numpy as np
import pytest
from mlflow.pyfunc import PyFuncModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from steps.logged_models.language_model import (
    LanguageModel,
    OnnxModel,
    TorchModel,
    checkpoint_tokenizer,
    language_model,
)
from steps.records.errors import StepError
from tests.conftest import TINY

pytestmark = pytest.mark.slow

SPAIN = [{"role": "user", "content": "What is the capital of Spain?"}]
ANSWER = "The capital of Spain is Madrid."


@pytest.fixture(scope="module")
def torch_model() -> LanguageModel:
    return TorchModel(AutoModelForCausalLM.from_pretrained(TINY), AutoTokenizer.from_pretrained(TINY))


@pytest.fixture(scope="module")
def onnx_model(fp32: Path) -> LanguageModel:
    """Return an fp32 build of the embedded checkpoint."""
    return OnnxModel(fp32)


def test_both_give_the_same_logits_for_every_position(torch_model: LanguageModel, onnx_model: LanguageModel) -> None:
    ids, _ = torch_model.chat(SPAIN, ANSWER)
    reference, build = torch_model.logits(ids), onnx_model.logits(ids)
    assert reference.shape == build.shape == (len(ids), 1024)
    assert reference.dtype == build.dtype == np.float32
    assert np.abs(reference - build).max() < 1e-3


def test_texts_of_different_lengths_have_the_same_logits_together_as_alone(torch_model: LanguageModel) -> None:
    texts = [torch_model.chat(SPAIN, ANSWER)[0], torch_model.encode(ANSWER), [5]]
    for tokens, logits in zip(texts, torch_model.logits_of(texts), strict=True):
        assert np.abs(logits - torch_model.logits(tokens)).max() < 1e-3


def test_a_text_may_end_in_the_pad_token(torch_model: LanguageModel, onnx_model: LanguageModel) -> None:
    ids, _ = torch_model.chat(SPAIN, ANSWER)
    pad = AutoTokenizer.from_pretrained(TINY).pad_token_id
    for text in ([*ids, pad, pad], [pad]):
        reference, build = torch_model.logits(text), onnx_model.logits(text)
        assert np.abs(reference - build).max() < 1e-3


def test_a_text_may_fill_the_whole_context(torch_model: LanguageModel, onnx_model: LanguageModel) -> None:
    ids = [5] * onnx_model.context
    assert torch_model.logits(ids).shape == onnx_model.logits(ids).shape == (512, 1024)


def test_a_second_text_knows_nothing_of_the_first(onnx_model: LanguageModel) -> None:
    ids, _ = onnx_model.chat(SPAIN, ANSWER)
    first = onnx_model.logits(ids)
    onnx_model.logits(ids[::-1])
    assert np.array_equal(onnx_model.logits(ids), first)


def test_a_chat_has_the_ids_of_transformers_and_its_answer_begins_in_the_same_place(
    torch_model: LanguageModel, onnx_model: LanguageModel
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    prompt = tokenizer.apply_chat_template(SPAIN, add_generation_prompt=True, tokenize=False)
    ids, begins = onnx_model.chat(SPAIN, ANSWER)
    assert ids == tokenizer(prompt + ANSWER, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids[begins:]) == ANSWER
    assert torch_model.chat(SPAIN, ANSWER) == (ids, begins)


def test_an_answer_that_merges_with_the_end_of_its_prompt_begins_at_the_merged_token(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).symlink_to(TINY / name)
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    ids, begins = TorchModel(None, AutoTokenizer.from_pretrained(tmp_path)).chat(
        [{"role": "user", "content": "The cap"}], "ital of Spain"
    )
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert tokenizer.decode(ids[begins:]).strip() == "capital of Spain"


def test_a_text_is_encoded_without_what_a_model_wants_before_it(onnx_model: LanguageModel) -> None:
    assert onnx_model.text(ANSWER) == ([], AutoTokenizer.from_pretrained(TINY)(ANSWER).input_ids)


def test_a_model_without_weights_that_we_know_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shout.py").write_text("import mlflow\nmlflow.models.set_model(lambda model_input: model_input)\n")
    mlflow.pyfunc.save_model(
        tmp_path / "model", python_model=str(tmp_path / "shout.py"), pip_requirements=["mlflow"], input_example=["a"]
    )
    with pytest.raises(StepError, match="neither of the transformers flavour nor has an artifact onnx"):
        language_model(cast("PyFuncModel", None), tmp_path / "model")


def test_the_checkpoints_own_tokenizer_is_the_file_that_was_logged_and_not_what_transformers_made_of_it(
    tmp_path: Path,
) -> None:
    for folder in ("model", "components/tokenizer"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "model" / "tokenizer.json").write_bytes((TINY / "tokenizer.json").read_bytes())
    (tmp_path / "components" / "tokenizer" / "tokenizer.json").write_text("{}")

    tokenizer = checkpoint_tokenizer(tmp_path)

    assert tokenizer is not None
    assert tokenizer.encode(ANSWER).ids == AutoTokenizer.from_pretrained(TINY)(ANSWER).input_ids
    assert checkpoint_tokenizer(tmp_path / "model") is None
