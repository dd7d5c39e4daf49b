"""Models of other families compute, read and write what transformers does, in both wrappers and in the flow."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import onnxruntime_genai as og
import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from steps.build_onnx_wrapper import log_wrapper
from steps.build_pipeline_wrapper import log_pipeline
from steps.config.command_line import compose_config
from steps.config.onnx import ExecutionProvider
from steps.logged_models.language_model import OnnxModel, TorchModel
from steps.onnx_build.export import build_onnx
from steps.records.onnx_recipes import Recipe
from steps.wrappers.onnx.detokenizer import Detokenizer
from steps.wrappers.onnx.tokenizer import ChatTokenizer
from tests.conftest import QUICK, run
from tests.families import FAMILIES, WINDOW, Family, export_as_it_is, logits_of, save_checkpoint, save_tokenizer
from tests.hub_server import environment, serving_hub

FP32 = Recipe("fp32", "fp32")
HARD_TEXT = [
    "What is the capital of Spain?",
    " a  b   c    d     e ",
    "\n\n\n lines\r\n\r\n\t\tand tabs \t\n ",
    "é e\u0301 ﬁ Å Å ñ ﷺ ½",
    "東京、서울, ประเทศไทย, हिन्दी, العربية, עברית",
    "👩‍👩‍👧‍👦 🏴󠁧󠁢󠁥󠁮󠁧󠁿 👍🏽 ☺️",
    "ᚠᛇᚻ 𐍈 ሰላም 𒀀 ꙮ 𓀀",
    "\u200b \u00a0 \u2028 \ufeff \x07 \x00 \x7f",
    "▁▁ <0x41> <0xE6><0x9D> � Ġ Ċ",
    "1234567890 3.14 1,000,000 don't I'LL we've x'y",
    "a" * 200 + " " * 200 + "!" * 200,
    "<|im_start|", "|im_end|>", "[INST", "</ s>", "< |end|>", "<|no_such_token|>", "<unknown>", "{{ x }}{% raw %}",
]  # fmt: skip
LONG = 300
"""Tokens: almost five windows."""


@dataclass(frozen=True)
class Built:
    """A family's checkpoint, its fp32 ONNX build, and transformers' logits [position, vocabulary] for `tokens`."""

    checkpoint: Path
    onnx: Path
    tokens: list[int]
    logits: npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """Return a function that builds a family once."""

    @cache
    def build(name: str) -> Built:
        folder = tmp_path_factory.mktemp(name)
        checkpoint = save_checkpoint(FAMILIES[name], folder / name)
        build_onnx(checkpoint, folder / "onnx", FP32, ExecutionProvider.cpu, folder / "log")
        tokens = torch.randint(10, 350, (LONG,), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            logits = AutoModelForCausalLM.from_pretrained(checkpoint)(tokens[None]).logits[0]
        return Built(checkpoint, folder / "onnx", tokens.tolist(), logits.numpy())

    return build


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


# Tokens


def test_ids_of_messages_and_prompts_are_those_of_transformers(family: Family, tmp_path: Path) -> None:
    theirs = save_tokenizer(family, tmp_path)
    ours = ChatTokenizer(tmp_path)
    for text in HARD_TEXT:
        messages = [
            {"role": "user", "content": text},
            {"role": "assistant", "content": text + text},
            {"role": "user", "content": text[::-1] + "."},
        ]
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert ours.encode_chat(messages) == expected, text
        assert ours.encode_prompt(text) == theirs(text)["input_ids"], text


def test_text_that_leaves_is_that_of_transformers_at_once_and_token_by_token(family: Family, tmp_path: Path) -> None:
    theirs = save_tokenizer(family, tmp_path)
    ours = ChatTokenizer(tmp_path)
    for text in HARD_TEXT:
        # From the middle of a character too, and ids that only fill up the vocabulary.
        for ids in (theirs(text)["input_ids"], [*theirs(text)["input_ids"][3:], len(theirs) + 1]):
            stream = Detokenizer(ours)
            for token in ids:
                stream.push(token)
            stream.finish()
            assert stream.settled == ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text


def test_a_message_that_looks_like_control_tokens_stays_text(family: Family, tmp_path: Path) -> None:
    theirs = save_tokenizer(family, tmp_path)
    ours, control = ChatTokenizer(tmp_path), set(theirs.all_special_ids) | set(theirs.get_added_vocab().values())

    def control_tokens(text: str) -> list[int]:
        return [token for token in ours.encode_chat([{"role": "user", "content": text}]) if token in control]

    for attack in theirs.get_added_vocab():
        assert control_tokens(f"a {attack} b {attack}{attack}") == control_tokens("a b"), attack


# Logits


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_transformers_at_every_position(built: Callable[[str], Built], name: str) -> None:
    model = built(name)
    for length in (WINDOW // 2, WINDOW, WINDOW + 1, 2 * WINDOW + 3, LONG):
        assert np.abs(logits_of(model.onnx, model.tokens[:length]) - model.logits[:length]).max() <= 1e-3


@pytest.mark.slow
def test_a_mistral_exported_as_it_is_forgets_its_window(built: Callable[[str], Built], tmp_path: Path) -> None:
    model = built("mistral")
    difference = np.abs(logits_of(export_as_it_is(model.checkpoint, tmp_path), model.tokens) - model.logits).max(axis=1)
    assert difference[:WINDOW].max() <= 1e-3
    assert difference[WINDOW + 1 :].max() > 0.1


@pytest.mark.slow
def test_the_tokenizer_of_onnxruntime_genai_would_give_other_ids_and_other_text(built: Callable[[str], Built]) -> None:
    model = built("phi3_gqa")
    theirs, genai = AutoTokenizer.from_pretrained(model.checkpoint), og.Tokenizer(og.Model(str(model.onnx)))
    assert [text for text in HARD_TEXT if genai.encode(text).tolist() != theirs(text)["input_ids"]]
    ids = theirs("hello 東京 world")["input_ids"]
    assert genai.decode(np.array(ids, dtype=np.int32)) == " hello 東京 world"
    assert ChatTokenizer(model.onnx).decode(ids) == theirs.decode(ids) == "hello 東京 world"


# The whole flow


QUESTIONS = [
    "What is the capital of Spain?",
    " é 東京 👍🏽\n\n  the quick",
    "hello world, " * 30,
    "lazy dog",
    "fox",
]
"""They reach across the window and hold hard text; none has a system message."""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """Return a task of QUESTIONS."""
    lines = [
        {"id": str(number), "messages": [{"role": "user", "content": question}], "reference": "Madrid."}
        for number, question in enumerate(QUESTIONS)
    ]
    (tmp_path / "task.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "task.jsonl"


def overrides(task: Path) -> list[str]:
    """Return what makes the evaluation fit for weights that know nothing."""
    gates = compose_config([]).evaluate.gates
    without = [f"~evaluate.gates.{name}" for name, gate in gates.items() if "integrity" not in gate["metric"]]
    return ["onnx=int4_cpu", "evaluate=capitals", f"evaluate.task={task}", "evaluate.max_tokens=24", *QUICK, *without]


@pytest.mark.slow
def test_a_qwen_from_a_hub_goes_through_the_whole_flow_in_int4(store: str, task: Path, tmp_path: Path) -> None:
    checkpoint = save_checkpoint(FAMILIES["qwen3"], tmp_path / "checkpoint")
    with serving_hub(tmp_path / "huggingface") as hub:
        commit = hub.repository("someone/Qwen-tiny").commit(
            {path.name: path.read_bytes() for path in checkpoint.iterdir()}
        )
        model = ["model=hub", "model.repo_id=someone/Qwen-tiny", f"model.revision={commit}"]
        # Too large to be logged: the later steps find it in the cache of the hub.
        command = ["python", "-m", "steps.main", *model, *overrides(task), "fetch_model.log_files_mb=0.01"]
        done = run(*command, **environment(hub, tmp_path / "huggingface"))
    assert done.returncode == 0, done.stdout + done.stderr
    version = MlflowClient().get_model_version_by_alias("Qwen-tiny", "champion")
    assert (version.tags["model.revision"], version.tags["onnx.precision"]) == (commit, "int4")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral", "phi3_gqa"])
def test_other_families_are_wrapped_and_answer_alike(built: Callable[[str], Built], store: str, name: str) -> None:
    model, config = built(name), compose_config([])
    with mlflow.start_run():
        uris = [
            log_pipeline(model.checkpoint, config.question, config.build_pipeline_wrapper),
            log_wrapper(model.onnx, name, config.question, config.build_onnx_wrapper),
        ]
    pipeline, onnx = (mlflow.pyfunc.load_model(uri) for uri in uris)
    for question in QUESTIONS:
        request = {"messages": [{"role": "user", "content": question}], "max_tokens": 24}
        theirs, ours = (wrapper.predict(request)[0] for wrapper in (pipeline, onnx))
        # MLflow takes away white space at the beginning.
        assert content(ours).lstrip() == content(theirs), question
        assert ours["usage"] == theirs["usage"], question


def content(response: dict[str, Any]) -> str:
    text: str = response["choices"][0]["message"]["content"]
    return text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "mistral", "phi3_gqa"])
def test_evaluate_reads_a_chat_of_another_family_alike_in_both_models(built: Callable[[str], Built], name: str) -> None:
    model = built(name)
    reference, build = (
        TorchModel(
            AutoModelForCausalLM.from_pretrained(model.checkpoint), AutoTokenizer.from_pretrained(model.checkpoint)
        ),
        OnnxModel(model.onnx),
    )
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        ids, begins = reference.chat(messages, "The capital of Spain is Madrid.")
        assert build.chat(messages, "The capital of Spain is Madrid.") == (ids, begins)
        assert np.abs(build.logits(ids) - reference.logits(ids)).max() <= 1e-3
