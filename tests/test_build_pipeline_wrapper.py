"""The pipeline wrapper answers as transformers' own chat pipeline does, and logging it costs little memory."""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import transformers

from steps.build_pipeline_wrapper import card_of, log_pipeline
from steps.config.command_line import compose_config
from steps.logged_models.logged_model import logged_folder
from tests.conftest import ROOT, program
from tests.families import FAMILIES, save_checkpoint

QUESTIONS = [
    "What is the capital of Spain?",
    "Can you tell me   the capital of Åland, 東京 or 👍🏽?\n\n",
    "capital " * 60,
]
MAX_TOKENS = 24


@pytest.fixture(scope="module", params=["tiny_phi3", "llama", "mistral", "qwen3"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "tiny_phi3":
        return ROOT / "models" / "tiny_phi3"
    return save_checkpoint(FAMILIES[request.param], tmp_path_factory.mktemp(request.param))


def conversations() -> list[list[dict[str, str]]]:
    single = [[{"role": "user", "content": question}] for question in QUESTIONS]
    return [*single, [*single[0], {"role": "assistant", "content": " It is Madrid. "}, *single[1]]]


def of_transformers(checkpoint: Path, messages: list[dict[str, str]]) -> tuple[str, int]:
    """Return the greedy answer of transformers' own chat pipeline, and its number of tokens."""
    pipeline = transformers.pipeline("text-generation", str(checkpoint), dtype="auto")
    options: Any = {"do_sample": False, "max_new_tokens": MAX_TOKENS}
    torch.manual_seed(0)
    text = pipeline(messages, return_full_text=False, **options)[0]["generated_text"]
    tokens = pipeline(messages, return_tensors=True, **options)[0]["generated_token_ids"]
    prompt = pipeline.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tokens[: len(prompt)] == prompt
    return text, len(tokens) - len(prompt)


@pytest.mark.slow
def test_answers_are_those_of_transformers_own_chat_pipeline(checkpoint: Path, store: str) -> None:
    options = compose_config(["model=local", f"model.path={checkpoint}"]).build_pipeline_wrapper
    with mlflow.start_run():
        uri = log_pipeline(checkpoint, QUESTIONS[0], options)
    with logged_folder(uri) as folder:
        model = mlflow.pyfunc.load_model(str(folder))
    for messages in conversations():
        (answer,) = model.predict({"messages": messages, "max_tokens": MAX_TOKENS})
        text, tokens = of_transformers(checkpoint, messages)
        # MLflow takes away white space at the beginning.
        assert answer["choices"][0]["message"]["content"] == text.lstrip()
        assert answer["usage"]["completion_tokens"] == tokens


@pytest.mark.slow
def test_logging_takes_the_same_memory_whatever_the_size_of_the_model(store: str, tmp_path: Path) -> None:
    peaks = []
    for size in (10**6, 300 * 10**6):
        checkpoint = tmp_path / str(size)
        shutil.copytree(ROOT / "models" / "tiny_phi3", checkpoint)
        tensor = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}
        header = json.dumps({"__metadata__": {"format": "pt"}, "weight": tensor}).encode()
        with (checkpoint / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(file.tell() + size)  # zeros that take no room here
        done = program("log_pipeline.py", str(checkpoint))
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]) * 1024)
    assert max(peaks) < 1.2e9
    assert abs(peaks[1] - peaks[0]) < 100e6


@pytest.mark.parametrize(
    "text",
    [
        b"---\nmodel-index:\n- name: small\n---\nA card.\n",
        b"---\nA rule, no front matter.\n---\nA card.\n",
        b"---\nbase_model: foo: bar\n---\nA card.\n",
        b"---\nlicense:\tmit\n\ttags: [a\n---\nA card.\n",
        "---\nlicense: mit\n---\nUne carte d\u00e9j\u00e0 \u00e9crite.\n".encode("latin-1"),
    ],
)
def test_a_card_whose_front_matter_is_odd_does_not_stop_the_build(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "README.md").write_bytes(text)
    assert "license" not in card_of(tmp_path).data.to_dict()


def test_a_card_that_can_be_read_is_logged(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\nA card.\n")
    assert card_of(tmp_path).data.to_dict() == {"license": "mit"}
