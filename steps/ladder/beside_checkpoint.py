"""Compares a build with its checkpoint: each is loaded alone, in a process that ends with the call.

The checkpoint's logits are computed once and saved to files, so that its memory is free before anything is built.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from steps.checkpoint.policy import only_needed
from steps.checkpoint.tokenizer_check import load_tokenizer
from steps.config.onnx import Ladder
from steps.config.schema import project_path
from steps.evaluation.fidelity import Logits, Text, TokenFidelity, compare, joined, measured_rows
from steps.evaluation.tasks import read_task
from steps.logged_models.dtype import dtype_name
from steps.logged_models.language_model import OnnxModel, TorchModel
from steps.measurement.measure import COMPARES_TEXT, in_batches
from steps.measurement.worker import Chat, texts_of
from steps.records.errors import StepError, in_one_line
from steps.safety.memory import available_memory
from steps.wrappers.onnx.cpus import usable_cpus

MOST_TOKENS = 4096
"""How many tokens of the text file are measured; each takes 4 bytes for every entry of the vocabulary on disk."""
PROMPT, ANSWER, ROUNDS = 64, 64, 3
"""For the decoding rate: tokens of the prompt, new tokens, and how many times it is measured; the median counts."""


@dataclass(frozen=True)
class Material:
    """What fidelity is measured on: questions with answers, and a text, at most *context* tokens at a time."""

    chats: list[tuple[Chat, str]]
    text: str | None
    context: int


@dataclass(frozen=True)
class Reference:
    """The checkpoint's logits for the measured tokens of *texts*: a file per text in *folder*, computed in *dtype*."""

    texts: list[Text]
    folder: Path
    dtype: str

    def logits(self, number: int) -> Logits:
        """Return the logits of text *number*, memory-mapped."""
        logits: Logits = np.load(self.folder / f"{number}.npy", mmap_mode="r")
        return logits


def material_of(ladder: Ladder) -> Material:
    """Return the material that *ladder* measures on. Raises StepError when there is none."""
    examples = read_task(project_path(ladder.task), ladder.scorer)[: ladder.limit]
    chats = [(each.messages, each.reference) for each in examples if each.scorer in COMPARES_TEXT][: ladder.questions]
    text = project_path(ladder.text).read_text(encoding="utf-8") if ladder.text else None
    if not chats and not text:
        msg = f"{ladder.task} has no reference that is an answer: give a text with -P evaluate.fidelity.text=FILE"
        raise StepError(msg)
    return Material(chats, text, ladder.context)


def require_rendering(snapshot: Path, chats: Sequence[tuple[Chat, str]], task: str) -> None:
    """Raise StepError where the chat template in *snapshot* refuses one of the *chats* of *task*."""
    with only_needed(snapshot) as own:
        language = TorchModel(None, load_tokenizer(own))  # rendering needs no weights
    for messages, _ in chats:
        try:
            language.render(messages)
        except Exception as error:  # whatever a template raises
            fact = f"the checkpoint's chat template refuses {messages!r:.200} of {task} ({in_one_line(error)})"
            msg = f"{fact}: take a task in the roles that it knows, with -P evaluate.task=FILE"
            raise StepError(msg) from error


def reference_of(snapshot: Path, material: Material, folder: Path) -> Reference:
    """Write the logits that transformers computes for the checkpoint in *snapshot* to *folder*."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(usable_cpus())
    # fp32 where memory allows: on a CPU without bf16 instructions it is also faster.
    dtype = "float32" if available_memory() > _fp32_bytes(snapshot) else "auto"
    # Corrected: the tokenizer is that of tokenizer.json, and Gemma 2 caps its attention.
    with only_needed(snapshot) as own:
        model = AutoModelForCausalLM.from_pretrained(own, dtype=dtype, local_files_only=True)
        language = TorchModel(model, AutoTokenizer.from_pretrained(own))
    read = texts_of(language, material.chats, material.text, material.context)
    texts = _limited(read, len(material.chats))
    for batch in in_batches(texts):
        for number, logits in zip(batch, language.logits_of([texts[each].ids for each in batch]), strict=True):
            np.save(folder / f"{number}.npy", measured_rows(logits, texts[number]))
    return Reference(texts, folder, dtype_name(model))


def measure_build(onnx: Path, reference: Reference) -> tuple[TokenFidelity, float]:
    """Return the fidelity of the build in the folder *onnx* to *reference*, and its tokens a second.

    Raises ValueError when their vocabularies differ, StepError when the build does not give all logits.
    """
    build = OnnxModel(onnx)
    parts = [
        compare(number, text, reference.logits(number), measured_rows(build.logits(text.ids), text))
        for number, text in enumerate(reference.texts)
        if text.begins < len(text.ids)
    ]
    prompt = reference.texts[-1].ids[:PROMPT]
    return joined(parts), median(build.decode_rate(prompt, ANSWER) for _ in range(ROUNDS))


def weights_bytes(folder: Path) -> int:
    """Return the bytes of the weights in *folder*, a checkpoint's or a build's, with the graph."""
    return sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".onnx", ".data"))


def _limited(texts: Sequence[Text], chats: int) -> list[Text]:
    """Return *texts*, *chats* chats and then pieces of the text file, without the pieces beyond MOST_TOKENS."""
    kept, measured = list(texts[:chats]), 0
    for text in texts[chats:]:
        if measured < MOST_TOKENS:
            kept.append(text)
            measured += len(text.ids) - text.begins
    return kept


def _fp32_bytes(snapshot: Path) -> int:
    config = json.loads((snapshot / "config.json").read_text(encoding="utf-8"))
    wide = "float32" in (config.get("dtype"), config.get("torch_dtype"))
    return weights_bytes(snapshot) * (1 if wide else 2)
