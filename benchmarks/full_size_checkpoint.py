"""A checkpoint of random weights in a Phi-3's dimensions, written file by file, so that it needs little memory."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from models.tiny_phi3.chat_tokenizer import build_tokenizer, save_tokenizer

VOCABULARY, TOKENS = 32064, 32011
"""Phi-3-mini's rows of the embedding table, and its tokens: the others only fill it up."""

CONTEXT, WINDOW = 4096, 2047
LAYERS_IN_A_FILE = 2


@dataclass(frozen=True)
class Size:
    """The dimensions of a Phi-3; as many key heads as query heads, of 96 numbers each in the true one."""

    layers: int
    hidden: int
    intermediate: int
    heads: int

    @property
    def parameters(self) -> int:
        """All weights."""
        return sum(rows * columns for shapes in self.shards() for rows, columns in shapes.values())

    def shards(self) -> Iterator[dict[str, tuple[int, int]]]:
        """Yield, for each file, the names and shapes of its weights; a norm has one row."""
        for first in range(0, self.layers, LAYERS_IN_A_FILE):
            shapes: dict[str, tuple[int, int]] = {}
            for layer in range(first, min(first + LAYERS_IN_A_FILE, self.layers)):
                name = f"model.layers.{layer}"
                shapes |= {
                    f"{name}.input_layernorm.weight": (1, self.hidden),
                    f"{name}.post_attention_layernorm.weight": (1, self.hidden),
                    f"{name}.self_attn.qkv_proj.weight": (3 * self.hidden, self.hidden),
                    f"{name}.self_attn.o_proj.weight": (self.hidden, self.hidden),
                    f"{name}.mlp.gate_up_proj.weight": (2 * self.intermediate, self.hidden),
                    f"{name}.mlp.down_proj.weight": (self.hidden, self.intermediate),
                }
            yield shapes
        yield {
            "model.embed_tokens.weight": (VOCABULARY, self.hidden),
            "model.norm.weight": (1, self.hidden),
            "lm_head.weight": (VOCABULARY, self.hidden),
        }


def make_checkpoint(folder: Path, size: Size) -> None:
    """Write a checkpoint of *size* to *folder*: bf16, file by file, with a tokenizer and a chat template."""
    import torch
    from safetensors.torch import save_file
    from transformers import Phi3Config

    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    shards = list(size.shards())
    index: dict[str, str] = {}
    for number, shapes in enumerate(shards, start=1):
        weights = {}
        for name, (rows, columns) in shapes.items():
            if rows == 1:
                weights[name] = torch.ones(columns, dtype=torch.bfloat16)
            else:
                weights[name] = torch.empty(rows, columns, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(weights, folder / file, {"format": "pt"})
        index |= dict.fromkeys(weights, file)
    total = {"metadata": {"total_size": 2 * size.parameters}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(total, indent=2))

    tokenizer = build_tokenizer(made_up_texts(), TOKENS, CONTEXT)
    save_tokenizer(tokenizer, folder)
    config = Phi3Config(
        architectures=["Phi3ForCausalLM"],
        dtype="bfloat16",
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=CONTEXT,
        original_max_position_embeddings=CONTEXT,
        sliding_window=WINDOW,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\nRandom weights in Phi-3-mini's dimensions.\n")


def made_up_texts() -> Iterator[str]:
    """Yield texts with so many different words that a tokenizer can learn Phi-3's number of tokens from them."""
    dice = random.Random(0)
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in ("a", "e", "i", "o", "u", "ou")]
    for _ in range(4000):
        yield " ".join("".join(dice.choices(syllables, k=dice.randint(2, 4))) for _ in range(10))
