"""int4 weights from calibration: by which texts, and what becomes of the checkpoint."""

import json
from importlib.util import find_spec
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from steps.config.command_line import compose_config
from steps.extras.auto_round_int4 import own_texts, pieces
from steps.extras.calibration import calibrate
from steps.flow.fingerprint import differences, fingerprint
from steps.onnx_build.export import build_onnx, recipe_of
from steps.records.errors import ConfigError, StepError
from tests.conftest import TINY, do_step
from tests.families import logits_of

EXTRA = pytest.mark.skipif(find_spec("auto_round") is None, reason="pip install -r requirements-calibration.in")
FEW = ["onnx=int4_calibrated", *(f"build_onnx_wrapper.calibration.{it}" for it in ("samples=4", "tokens=48"))]
FEW.append("build_onnx_wrapper.calibration.iterations=2")
SURPRISED = 2.0
"""Nats a token; texts that the model says have 0.7, and 6 or more where it does not see what it said."""

FILE = "build_onnx_wrapper.calibration.file"


def test_a_text_is_cut_into_pieces_of_equal_length(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    (tmp_path / "text.txt").write_text("The capital of Mali is Bamako. " * 20)
    ids = tokenizer.encode((tmp_path / "text.txt").read_text(), add_special_tokens=False)
    assert pieces(tmp_path / "text.txt", tokenizer, 30) == [ids[at : at + 30] for at in range(0, len(ids) - 29, 30)]


def test_the_chats_of_a_task_come_with_their_answers_as_the_template_writes_them(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    example = {"id": "1", "messages": [{"role": "user", "content": "Capital of Mali?"}], "reference": "Bamako."}
    (tmp_path / "task.jsonl").write_text(json.dumps(example) + "\n\n")
    chat = [*example["messages"], {"role": "assistant", "content": "Bamako."}]
    whole = tokenizer.encode(tokenizer.apply_chat_template(chat, tokenize=False), add_special_tokens=False)
    assert pieces(tmp_path / "task.jsonl", tokenizer, len(whole)) == [whole]


def test_the_models_own_texts_begin_as_a_user_does_and_have_the_length_that_was_asked_for() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    texts = own_texts(model, tokenizer, 4, 40)
    assert [len(text) for text in texts] == [40] * 4
    user = tokenizer.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    assert tokenizer.decode(texts[0])[:6] == user[:6]
    assert texts[0] != texts[1]
    with torch.inference_mode():
        surprise = float(model(torch.tensor(texts), labels=torch.tensor(texts)).loss)
    assert surprise < SURPRISED, "each token follows from those before it"


@EXTRA
def test_texts_by_which_evaluate_judges_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"calibration.file=data/capitals\.jsonl cannot be used: expected a file by wh"
    ):
        compose_config(["onnx=int4_calibrated", f"{FILE}=data/capitals.jsonl"])


@EXTRA
def test_only_int4_weights_are_calibrated() -> None:
    with pytest.raises(
        ConfigError, match=r"calibration is only for int4 weights that are built here: choose onnx=int4_calibrated"
    ):
        compose_config(["onnx=int4_calibrated", "build_onnx_wrapper.precision=int8"])


@EXTRA
def test_other_texts_are_another_build(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    found = []
    for text in ("one", "two"):
        file.write_text(text)
        found.append(fingerprint("build_onnx_wrapper", compose_config([*FEW, f"{FILE}={file}"]), {}))
    assert differences(*found) == ["input build_onnx_wrapper.calibration.file changed"]


@EXTRA
@pytest.mark.slow
def test_a_file_with_too_few_texts_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("Bamako")
    options = compose_config([*FEW, f"{FILE}={tmp_path / 'text.txt'}"]).build_onnx_wrapper
    with pytest.raises(StepError, match=r"text.txt has 0 pieces of 48 tokens, and calibration.samples=4 \(all it said"):
        calibrate(TINY, tmp_path / "calibrated", options, tmp_path / "calibration.log")


@EXTRA
@pytest.mark.slow
def test_the_build_takes_the_calibrated_weights_packed_and_the_checkpoints_own_other_files(tmp_path: Path) -> None:
    options = compose_config(FEW).build_onnx_wrapper
    made = calibrate(TINY, tmp_path / "calibrated", options, tmp_path / "calibration.log")
    assert made["samples"] == 4 and made["auto_round"] and made["seconds"] > 0
    assert (tmp_path / "calibrated" / "tokenizer.json").read_bytes() == (TINY / "tokenizer.json").read_bytes()
    build_onnx(
        tmp_path / "calibrated", tmp_path / "onnx", recipe_of(options), options.execution_provider, tmp_path / "log"
    )
    nodes = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph.node
    packed = [node for node in nodes if node.op_type == "MatMulNBits"]
    assert packed and not [node for node in nodes if node.op_type == "MatMul"]
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    question = {"role": "user", "content": "What is the capital of Mali?"}
    answer = {"role": "assistant", "content": "The capital of Mali is Bamako."}
    tokens = tokenizer.encode(tokenizer.apply_chat_template([question, answer], tokenize=False))
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    same = logits_of(tmp_path / "onnx", tokens).argmax(1) == expected.argmax(1)
    assert np.mean(same) > 0.9


@EXTRA
@pytest.mark.slow
def test_the_step_records_with_what_it_calibrated_and_its_model_answers(store: str) -> None:
    fetched = do_step("fetch_model", compose_config([]))
    built = do_step("build_onnx_wrapper", compose_config([*FEW, f"fetch_run_id={fetched.info.run_id}"]))
    made, answer = (
        json.loads(mlflow.artifacts.load_text(f"{built.info.artifact_uri}/{name}.json"))
        for name in ("calibration", "answer")
    )
    assert (made["file"], made["samples"], made["iterations"]) == (None, 4, 2)
    assert built.data.tags["onnx.calibration"].endswith(", 4 texts of 48 tokens of the model itself")
    assert answer["answer"].startswith("The capital of ")
