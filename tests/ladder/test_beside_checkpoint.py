"""The reference of a ladder is what the checkpoint computes, and a task that it refuses is named."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from steps.ladder.beside_checkpoint import Material, reference_of, require_rendering
from steps.records.errors import StepError
from tests.families import FAMILIES, save_checkpoint, save_tokenizer


def test_the_reference_of_gemma_2_has_the_cap_of_its_attention(tmp_path: Path) -> None:
    gemma = replace(FAMILIES["llama"], architecture="Gemma2", options={"attn_logit_softcapping": 0.1, "head_dim": 16})
    folder = save_checkpoint(gemma, tmp_path / "gemma")
    (tmp_path / "logits").mkdir()
    reference = reference_of(folder, Material([], "the capital of Spain is Madrid " * 8, 64), tmp_path / "logits")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    (text, *_) = reference.texts
    with torch.inference_mode():
        meant = model(torch.tensor([text.ids])).logits[0].float().numpy()
    found = reference.logits(0)
    assert np.abs(meant[-len(found) - 1 : -1] - found).max() < 1e-4


def test_a_task_that_the_chat_template_refuses_is_named_with_what_the_template_says(tmp_path: Path) -> None:
    save_tokenizer(FAMILIES["llama"], tmp_path)
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}x"
    (tmp_path / "chat_template.jinja").write_text(template)
    (tmp_path / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    asked = {"role": "user", "content": "Why?"}
    require_rendering(tmp_path, [([asked], "So.")], "tasks/own.jsonl")
    with pytest.raises(StepError) as refused:
        require_rendering(tmp_path, [([{"role": "system", "content": "Be brief."}, asked], "So.")], "tasks/own.jsonl")
    assert "\n" not in str(refused.value)
    assert "tasks/own.jsonl" in str(refused.value)
    assert "System role not supported" in str(refused.value)
