"""A checkpoint of random weights in a Phi-3's dimensions, written file by file, so that it needs little memory.

Its tokenizer knows every character alone, so that a text's length says how many tokens it has.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Phi3Config, PreTrainedTokenizerFast

VOCABULARY, CONTEXT, WINDOW = 32_064, 4096, 2047
"""Phi-3-mini's."""

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>\n"
CONTROL = ("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
LAYERS_IN_A_FILE = 2


@dataclass(frozen=True)
class Size:
    """The dimensions of a Phi-3, with as many key heads as query heads; by default one of 330 M parameters."""

    layers: int = 16
    hidden: int = 1024
    intermediate: int = 4096
    heads: int = 16

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


def add_size_options(parser: argparse.ArgumentParser, default: Size) -> None:
    """Let *parser* read the dimensions of a Size; a trial takes smaller ones."""
    for each in fields(Size):
        value = getattr(default, each.name)
        parser.add_argument(f"--{each.name}", type=int, default=value, help=f"of the model (default: {value})")


def chosen_size(options: argparse.Namespace) -> Size:
    """Return the Size that *options* of such a parser say."""
    return Size(options.layers, options.hidden, options.intermediate, options.heads)


def make_checkpoint(folder: Path, size: Size) -> Path:
    """Return *folder* with a checkpoint of *size* in bf16, a tokenizer and a chat template, made unless it is there."""
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    _write_weights(folder, size)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    ids = tokenizer.get_vocab()
    end_of_text, end = ids["<|endoftext|>"], ids["<|end|>"]
    (folder / "README.md").write_text("---\nlicense: mit\n---\nRandom weights in a Phi-3's dimensions.\n")
    # Last: with it the folder is complete.
    Phi3Config(
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
        bos_token_id=end_of_text,
        eos_token_id=end,
        pad_token_id=end_of_text,
    ).save_pretrained(folder)
    return folder


def _write_weights(folder: Path, size: Size) -> None:
    import torch
    from safetensors.torch import save_file

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


def _tokenizer() -> PreTrainedTokenizerFast:
    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    words += [f"word{number}" for number in range(VOCABULARY - 64 - len(words))]
    tokenizer = Tokenizer(models.BPE(vocab={word: at for at, word in enumerate(words)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text) for text in CONTROL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )
