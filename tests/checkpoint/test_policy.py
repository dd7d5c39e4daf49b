"""Both wrappers hold the manifest's files, follow tokenizer.json, and have one set of end tokens and one policy."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.models import Model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, pipeline

from steps.build_pipeline_wrapper import log_pipeline
from steps.checkpoint.policy import end_tokens, generation_config, neutral_options, not_applied, only_needed
from steps.config.command_line import compose_config
from steps.config.onnx import ExecutionProvider
from steps.logged_models.logged_model import logged_folder
from steps.onnx_build.export import build_onnx
from steps.records.onnx_recipes import Recipe
from tests.families import FAMILIES, save_checkpoint

from .broken import change, llama

ASKED = {"do_sample": True, "repetition_penalty": 1.1, "temperature": 0.7, "top_p": 0.8, "no_repeat_ngram_size": 3}


def test_the_end_tokens_are_all_that_any_file_names(checkpoint: Path) -> None:
    # <|endoftext|> is 1019, <|end|> 1022; the tokenizer alone names the third.
    change(checkpoint, "tokenizer_config.json", eos_token="</s>")
    assert end_tokens(checkpoint) == [1019, 1022, 2]


def test_an_end_token_that_only_the_tokenizer_names_is_enough(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").unlink()
    change(checkpoint, "config.json", eos_token_id=None)
    change(checkpoint, "tokenizer_config.json", eos_token={"content": "<|end|>"})
    assert end_tokens(checkpoint) == [1022]


def test_what_the_checkpoint_asks_for_is_said_and_not_applied(checkpoint: Path) -> None:
    assert not_applied(checkpoint) == {}
    change(checkpoint, "generation_config.json", **ASKED)
    assert not_applied(checkpoint) == ASKED
    assert neutral_options(checkpoint) == {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}
    assert generation_config(checkpoint) == {
        "bos_token_id": 1,
        "pad_token_id": 1019,
        "eos_token_id": [1019, 1022],
        "do_sample": False,
    }


def test_files_that_are_no_part_of_a_checkpoint_stay_out(checkpoint: Path) -> None:
    with only_needed(checkpoint) as folder:
        assert folder == checkpoint
    for name in ("optimizer.pt", "pytorch_model.bin", "modeling_phi3.py", ".git/config", "onnx/model.onnx"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text("not ours")
    with only_needed(checkpoint) as folder:
        assert {path.name for path in folder.iterdir()} == {path.name for path in checkpoint.iterdir()} - {
            "optimizer.pt",
            "pytorch_model.bin",
            "modeling_phi3.py",
            ".git",
            "onnx",
        }


def test_templates_beside_the_chat_template_keep_their_folder(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "additional_chat_templates").mkdir()
    (checkpoint / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    with only_needed(checkpoint) as folder:
        assert folder == checkpoint
    (checkpoint / "additional_chat_templates" / "code.py").write_text("import os")
    with only_needed(checkpoint) as folder:
        assert [path.name for path in (folder / "additional_chat_templates").iterdir()] == ["tool_use.jinja"]


def test_settings_that_read_otherwise_are_corrected_in_a_copy(tmp_path: Path) -> None:
    folder = llama(tmp_path, "LlamaTokenizerFast")
    with only_needed(folder) as corrected:
        settings = json.loads((corrected / "tokenizer_config.json").read_text())
        assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"] == "LlamaTokenizerFast"


def test_gemma_2_is_computed_with_the_cap_of_its_attention(tmp_path: Path) -> None:
    gemma = replace(FAMILIES["llama"], architecture="Gemma2", options={"attn_logit_softcapping": 0.1, "head_dim": 16})
    folder = save_checkpoint(gemma, tmp_path / "gemma")
    tokens = torch.arange(10, 40)[None]

    def logits(path: Path, **options: str) -> torch.Tensor:
        with torch.inference_mode():
            return AutoModelForCausalLM.from_pretrained(path, **options)(tokens).logits

    meant = logits(folder, attn_implementation="eager")
    with only_needed(folder) as corrected:
        assert torch.equal(logits(corrected), meant)
    assert (logits(folder) - meant).abs().max() > 0.01


@pytest.mark.slow
def test_both_wrappers_have_the_ids_and_the_end_tokens_of_the_checkpoint(store: str, tmp_path: Path) -> None:
    folder = save_checkpoint(FAMILIES["llama"], tmp_path / "checkpoint")
    change(folder, "tokenizer_config.json", tokenizer_class="LlamaTokenizerFast")
    change(folder, "generation_config.json", eos_token_id=5, repetition_penalty=1.1)
    (folder / "optimizer.pt").write_bytes(b"not ours")
    own = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids, ends = own.encode("hello world", add_special_tokens=False).ids, end_tokens(folder)
    assert 5 in ends
    assert len(ends) > 1

    options = compose_config(["onnx=fp32_cpu"])
    build_onnx(folder, tmp_path / "onnx", Recipe("fp32", "fp32"), ExecutionProvider.cpu, tmp_path / "log")
    built = Tokenizer.from_file(str(tmp_path / "onnx" / "tokenizer.json"))
    assert built.encode("hello world", add_special_tokens=False).ids == ids
    assert built.decode(ids) == "hello world"
    assert json.loads((tmp_path / "onnx" / "genai_config.json").read_text())["model"]["eos_token_id"] == ends

    with mlflow.start_run(), only_needed(folder) as needed:
        uri = log_pipeline(needed, "Why?", options.build_pipeline_wrapper)
    with logged_folder(uri) as logged:
        assert not list(logged.rglob("optimizer.pt"))
        config = Model.load(str(logged)).flavors["python_function"]["config"]
        assert (config["eos_token_id"], config["repetition_penalty"], config["do_sample"]) == (ends, 1.0, False)
        model = mlflow.pyfunc.load_model(str(logged))
        tokenizer = model.get_raw_model().tokenizer
        assert tokenizer.encode("hello world", add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == "hello world"
        (answer,) = model.predict({"messages": [{"role": "user", "content": "hello world"}], "max_tokens": 8})
        assert answer["usage"]["completion_tokens"] <= 8


@pytest.mark.parametrize(
    "asked",
    [{"stop_strings": ["Madrid"]}, {"penalty_alpha": 0.6, "top_k": 4}, {"max_time": 1e-4}, {"num_return_sequences": 2}],
)
def test_no_other_way_to_decode_or_stop_that_a_checkpoint_asks_for_reaches_the_answer(
    checkpoint: Path, asked: dict[str, object]
) -> None:
    change(checkpoint, "generation_config.json", **asked)
    assert not_applied(checkpoint) == asked
    question = [{"role": "user", "content": "What is the capital of Spain?"}]
    with only_needed(checkpoint) as own:
        answers: Any = pipeline("text-generation", model=str(own), device="cpu")
        (answer,) = answers(question, max_new_tokens=20, do_sample=False, **neutral_options(checkpoint))
    assert answer["generated_text"][-1]["content"] == "The capital of Spain is Madrid."
