"""What becomes of every architecture that onnxruntime-genai's builder names: built in fp32, beside transformers.

    python -m benchmarks.architectures            # all, each in a process of its own; prints a Markdown table
    python -m benchmarks.architectures Qwen3      # those whose label contains the word

Each is a checkpoint of random weights in tiny dimensions with the real layers. Its logits are compared alone across a
window of 64 positions, after a rewind, and in a batch with a shorter, padded row.
"""

import argparse
import io
import multiprocessing
import os
import re
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.report import machine
from steps.config.onnx import ExecutionProvider
from steps.config.schema import ROOT
from steps.onnx_build.export import builder_command
from steps.records.errors import first_line, in_one_line
from steps.records.onnx_recipes import Recipe

MEASURES = ("alone", "rewound", "padded batch")
FORK = multiprocessing.get_context("fork")
TOKENS, SHORT, WINDOW, CONTEXT = 300, 90, 64, 512
LIMIT = 1e-3
"""The largest difference of two logits that is no difference."""

SIZES = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.1,  # larger than usual: logits of about 1, which differ where something is wrong
    "bos_token_id": 1,
    "eos_token_id": 1019,
    "pad_token_id": 0,
}
ROPE: dict[str, dict[str, Any]] = {
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0, "original_max_position_embeddings": 128},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": CONTEXT, "beta_fast": 32.0, "beta_slow": 1.0},
}


def rope(kind: str) -> dict[str, Any]:
    """Return the part of config.json that scales rotary positions as *kind* does."""
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **ROPE[kind]}}


def long_rope(rotary: int, others: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a Phi-3's config.json for LongRoPE over *rotary* dimensions of each head, and *others*."""
    factors = {
        "short_factor": [1.0 + 0.1 * number for number in range(rotary // 2)],
        "long_factor": [2.0 + 0.5 * number for number in range(rotary // 2)],
    }
    limits = {"max_position_embeddings": 4096, "original_max_position_embeddings": 400}
    partial = {"partial_rotary_factor": others.get("partial_rotary_factor", 1.0)}
    kind = {"rope_type": "longrope", "type": "longrope", "rope_theta": 10000.0}
    return {"rope_parameters": {**kind, **factors, **partial}, **limits, **others}


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 2, SmolLM 2 (tied)": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "Llama 3 (rope llama3)": ("LlamaForCausalLM", rope("llama3")),
    **{f"Llama, rope {kind}": ("LlamaForCausalLM", rope(kind)) for kind in ("linear", "dynamic", "yarn")},
    "Llama, attention bias": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True}),
    "Mistral (window)": ("MistralForCausalLM", {"sliding_window": WINDOW}),
    "Mistral (no window)": ("MistralForCausalLM", {"sliding_window": None}),
    **{f"Mistral, rope {kind}": ("MistralForCausalLM", rope(kind)) for kind in ("linear", "yarn")},
    "Phi-3-mini-4k (window)": (
        "Phi3ForCausalLM",
        {"sliding_window": WINDOW, "original_max_position_embeddings": CONTEXT},
    ),
    "Phi-3 whose config.json states one limit": ("Phi3ForCausalLM", {"sliding_window": None}),
    "Phi-3.5, Phi-3-128k, below the limit": ("Phi3ForCausalLM", long_rope(32, {})),
    "Phi-4-mini, below the limit": (
        "Phi3ForCausalLM",
        long_rope(
            48,
            {
                "partial_rotary_factor": 0.75,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "tie_word_embeddings": True,
            },
        ),
    ),
    "Qwen 2, 2.5": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "Qwen 2.5 (window in the upper layers)": (
        "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 2},
    ),
    **{f"Qwen 2.5, rope {kind}": ("Qwen2ForCausalLM", rope(kind)) for kind in ("yarn", "linear", "dynamic")},
    "Qwen 3": ("Qwen3ForCausalLM", {"tie_word_embeddings": True}),
    "Qwen 3, rope yarn": ("Qwen3ForCausalLM", rope("yarn")),
    "Qwen 3, rope yarn as its card says, without beta_fast": (
        "Qwen3ForCausalLM",
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}},
    ),
    "Gemma": ("GemmaForCausalLM", {"hidden_size": 256}),
    "Gemma, the root of whose hidden_size has many decimals": ("GemmaForCausalLM", {}),
    "Gemma 2 (every second layer a window)": (
        "Gemma2ForCausalLM",
        {"sliding_window": WINDOW, "query_pre_attn_scalar": 32, "hidden_size": 256},
    ),
    "Gemma 2, beside eager attention": (
        "Gemma2ForCausalLM",
        {
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 32,
            "hidden_size": 256,
            "attn_implementation": "eager",
        },
    ),
    "Gemma 3 (window)": ("Gemma3ForCausalLM", {"sliding_window": WINDOW, "query_pre_attn_scalar": 32}),
    "SmolLM 3": ("SmolLM3ForCausalLM", {"no_rope_layer_interval": 2}),
    "Granite 3": ("GraniteForCausalLM", {"embedding_multiplier": 12.0, "attention_multiplier": 0.02}),
    "Granite 4 hybrid (attention alone)": (
        "GraniteMoeHybridForCausalLM",
        {"layer_types": ["attention"] * 4, "shared_intermediate_size": 256, "num_local_experts": 0},
    ),
    "Granite 4 (attention alone, rotary positions)": (
        "GraniteMoeHybridForCausalLM",
        {
            "layer_types": ["attention"] * 4,
            "shared_intermediate_size": 256,
            "num_local_experts": 0,
            "position_embedding_type": "rope",
        },
    ),
    "OLMo": ("OlmoForCausalLM", {}),
    "OLMo, clipped": ("OlmoForCausalLM", {"clip_qkv": 1.0}),
    "Phi 1.5, 2": ("PhiForCausalLM", {"partial_rotary_factor": 0.5, "num_key_value_heads": 4}),
    "Nemotron": ("NemotronForCausalLM", {"partial_rotary_factor": 0.5}),
    "Ernie 4.5": ("Ernie4_5ForCausalLM", {}),
    "HunYuan dense": ("HunYuanDenseV1ForCausalLM", {}),
    "GPT-OSS": (
        "GptOssForCausalLM",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW},
    ),
    "LFM2": ("Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"] * 2}),
    "LFM2 MoE": (
        "Lfm2MoeForCausalLM",
        {
            "layer_types": ["conv", "full_attention"] * 2,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "num_dense_layers": 1,
        },
    ),
}
"""What is built: by label, the architecture and what differs from transformers' defaults and SIZES."""


def names() -> list[str]:
    """Return every architecture that the builder compares with."""
    package = find_spec("onnxruntime_genai")
    assert package is not None
    assert package.submodule_search_locations is not None
    source = (Path(package.submodule_search_locations[0]) / "models" / "builder.py").read_text(encoding="utf-8")
    return sorted(set(re.findall(r'architectures\[0\] == "(\w+)"', source)))


def kind_of(architecture: str) -> str | None:
    """Return transformers' model type for *architecture*, or None where it has no causal language model of the name."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return next((kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name == architecture), None)


def save(label: str, folder: Path) -> Any:  # noqa: ANN401  transformers has no types
    """Write the checkpoint of *label* to *folder*, with the embedded model's tokenizer; return the model."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Tokenizer

    def untyped(each: Any) -> Any:  # noqa: ANN401
        return each  # transformers has types for some of its functions

    architecture, changes = VARIANTS[label]
    kind = kind_of(architecture)
    assert kind is not None
    known = AutoConfig.for_model(kind).to_dict()
    sizes = {key: value for key, value in SIZES.items() if key in known}
    torch.manual_seed(0)
    model = untyped(AutoModelForCausalLM).from_config(
        AutoConfig.for_model(kind, **{**sizes, **changes}), dtype=torch.float32
    )
    for name, weight in model.named_parameters():  # the norms and biases, which begin as ones and zeros
        if weight.dim() == 1:
            weight.data += 0.1 * torch.randn(weight.shape)
        assert weight.isfinite().all(), name
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "models" / "tiny_phi3" / name, folder / name)
    if kind == "qwen2":  # transformers reads every such checkpoint with Qwen's own rules
        letters = sorted(ByteLevel.alphabet())
        vocabulary = {text: number for number, text in enumerate([*letters, "<|endoftext|>"])}
        untyped(Qwen2Tokenizer)(vocab=vocabulary, merges=[]).save_pretrained(folder)
    return model.eval()


def build(checkpoint: Path, output: Path) -> None:
    """Write the fp32 build of *checkpoint* to *output* as the flow does, but in this process, which has it imported."""
    cache = output.parent / "cache"
    command = builder_command(checkpoint, output, cache, Recipe("fp32", "fp32"), ExecutionProvider.cpu)
    sys.argv = command[2:]
    with redirect_stdout(io.StringIO()):
        runpy.run_module(command[2], run_name="__main__", alter_sys=True)


def differences(label: str, work: Path, tell: Callable[[dict[str, float | str]], None]) -> None:
    """*tell* the largest difference of logits of *label*'s build alone, rewound, and in a padded batch; or why not."""
    import numpy as np
    import onnxruntime_genai as og
    import torch

    model = save(label, work / "checkpoint")
    build(work / "checkpoint", work / "onnx")
    tokens = torch.randint(10, 1000, (TOKENS,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = model(tokens[None], use_cache=False).logits[0].numpy()
        part = model(tokens[None, :SHORT], use_cache=False).logits[0].numpy()
    runtime = og.Model(str(work / "onnx"))

    def generator(rows: int) -> Any:  # noqa: ANN401
        params = og.GeneratorParams(runtime)
        params.set_search_options(max_length=TOKENS + 8, batch_size=rows, do_sample=False)
        return og.Generator(runtime, params)

    def alone() -> float:
        one = generator(1)
        one.append_tokens(tokens.numpy().astype(np.int32)[None])
        return float(np.abs(one.get_output("logits")[0] - whole).max())

    def rewound() -> float:
        one = generator(1)
        one.append_tokens(tokens.numpy().astype(np.int32)[None])
        one.rewind_to(SHORT)
        one.append_tokens(tokens.numpy().astype(np.int32)[None, SHORT:])
        return float(np.abs(one.get_output("logits")[0, -1] - whole[-1]).max())

    def padded() -> float:
        # On the right, as the wrapper's engine pads: onnxruntime-genai counts positions from the left.
        rows = np.full((2, TOKENS), SIZES["pad_token_id"], dtype=np.int32)
        rows[0], rows[1, :SHORT] = tokens.numpy(), tokens.numpy()[:SHORT]
        two = generator(2)
        two.append_tokens(rows)
        logits = two.get_output("logits")
        return float(max(np.abs(logits[0, -1] - whole[-1]).max(), np.abs(logits[1, SHORT - 1] - part[-1]).max()))

    for name, measure in zip(MEASURES, (alone, rewound, padded), strict=True):
        try:
            found: float | str = measure()
        except (RuntimeError, ValueError) as error:  # what onnxruntime-genai raises
            found = first_line(error)[:90]
        tell({name: found})  # at once: the next one may end the process


def take(label: str) -> dict[str, float | str]:
    """Return what `differences` finds in a process of its own, which may crash."""
    receive, send = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_take, args=(label, send))
    process.start()
    send.close()
    found: dict[str, float | str] = {}
    with suppress(EOFError):
        while True:
            found |= receive.recv()
    process.join()
    if process.exitcode != 0:
        missing = next((name for name in MEASURES if name not in found), MEASURES[0])
        found[missing] = f"the process ends with {process.exitcode}"
    return found


def _take(label: str, send: Connection) -> None:
    with tempfile.TemporaryDirectory() as work:
        try:
            differences(label, Path(work), send.send)
        except BaseException as error:  # noqa: BLE001  whatever the builder raises
            send.send({MEASURES[0]: in_one_line(error)[:160]})


def cell(value: float | str | None) -> str:
    """Return *value* as the table shows it."""
    if isinstance(value, float):
        return f"equal ({value:.0e})" if value <= LIMIT else f"**differs** ({value:.2g})"
    return "not measured" if value is None else f"**fails**: {value}".replace("|", "/")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="")
    arguments = parser.parse_args()
    import onnxruntime_genai  # noqa: F401  once, for all the processes that are forked
    import transformers.models.auto.modeling_auto  # noqa: F401

    os.environ["HF_HUB_OFFLINE"] = "1"
    print("| model | architecture | alone | rewound | padded batch |\n|---|---|---|---|---|")
    for label, (architecture, _) in VARIANTS.items():
        if arguments.word in label:
            found = take(label)
            cells = [cell(found.get(name)) for name in MEASURES]
            print(f"| {label} | {architecture} | {' | '.join(cells)} |", flush=True)
    untried = sorted(set(names()) - {architecture for architecture, _ in VARIANTS.values()})
    for architecture in untried if not arguments.word else []:
        why = "no causal language model of transformers' own" if kind_of(architecture) is None else "more than text"
        print(f"| | {architecture} | not taken: {why} | | |")
    print(f"\n{machine()}")


if __name__ == "__main__":
    main()
