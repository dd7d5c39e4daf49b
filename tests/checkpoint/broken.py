"""Ways to break a copy of the embedded checkpoint, and how fetch_model refuses it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from steps.config.command_line import compose_config
from steps.fetch_model import fetch
from steps.records.errors import StepError
from tests.families import FAMILIES, save_tokenizer

NAMES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def change(folder: Path, file: str, **values: Any) -> None:
    """Set *values* in the JSON *file*; None removes a key."""
    content = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def rename(folder: Path, to: Callable[[str], str | None]) -> None:
    """Give each weight the name that *to* returns; None drops it."""
    weights = load_file(folder / "model.safetensors")
    save_file({new: value for old, value in weights.items() if (new := to(old))}, folder / "model.safetensors")


def refusal(folder: Path) -> str:
    """Return the line with which fetch_model refuses the checkpoint in *folder*."""
    with pytest.raises(StepError) as refused:
        fetch(compose_config(["model=local", f"model.path={folder}"]))
    assert "\n" not in str(refused.value)
    return str(refused.value)


def llama(folder: Path, tokenizer_class: str, family: str = "llama") -> Path:
    """Write the tokenizer of *family* to *folder*, and what says that a Llama has it, of *tokenizer_class*."""
    save_tokenizer(FAMILIES[family], folder)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 640, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(config))
    change(folder, "tokenizer_config.json", tokenizer_class=tokenizer_class)
    return folder
