"""A random checkpoint as what is compared: ONNX, as the flow builds it, and llama.cpp's GGUF."""

import ctypes
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from steps.checkpoint.onnx_export import build_onnx, recipe_of
from steps.config.command_line import compose_config


def make_onnx(checkpoint: Path, work: Path, *overrides: str) -> Path:
    """Return the folder below *work* with what build_onnx_wrapper makes of *checkpoint*, made unless it is there.

    *overrides* are the flow's; without any it is what a user gets.
    """
    options = compose_config(list(overrides)).build_onnx_wrapper
    kind = f"{recipe_of(options).name}-{options.block_size}-{options.accuracy_level}"
    folder = work / f"{checkpoint.name}-{kind}"
    if not (folder / "model.onnx").exists():
        work.mkdir(parents=True, exist_ok=True)
        build_onnx(checkpoint, folder, recipe_of(options), options.execution_provider, work / f"{folder.name}.log")
    return folder


def make_gguf(checkpoint: Path, path: Path) -> Path:
    """Return *path*, llama.cpp's own Q4_0 of *checkpoint*, made unless it is there. Needs gguf and llama-cpp-python."""
    import gguf
    import llama_cpp
    from safetensors.torch import load_file

    if path.exists():
        return path
    config = json.loads((checkpoint / "config.json").read_text())
    full = path.with_suffix(".f16.gguf")
    writer = gguf.GGUFWriter(full, "phi3")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_tokenizer_model("llama")
    vocabulary = config["vocab_size"]
    writer.add_token_list([f"t{number}".encode() for number in range(vocabulary)])
    writer.add_token_scores([0.0] * vocabulary)
    writer.add_token_types([gguf.TokenType.NORMAL] * vocabulary)
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            array = tensor.float().numpy()
            writer.add_tensor(_gguf_name(name), array if array.ndim == 1 else array.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parameters: Any = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    llama_cpp.llama_log_set(_silent(), ctypes.c_void_p(0))
    failed = llama_cpp.llama_model_quantize(str(full).encode(), str(path).encode(), parameters)
    full.unlink()
    if failed:
        msg = f"llama.cpp could not quantise {full}: code {failed}"
        raise RuntimeError(msg)
    return path


@functools.cache  # llama.cpp calls it as long as it runs, so it must not be collected
def _silent() -> Any:  # noqa: ANN401  # a ctypes function
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda _level, _text, _data: None)


def _gguf_name(name: str) -> str:
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.qkv_proj": "attn_qkv",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    name = name.removesuffix(".weight")
    if not name.startswith("model.layers."):
        return f"{names[name]}.weight"
    _model, _layers, number, part = name.split(".", 3)
    return f"blk.{number}.{names[part]}.weight"
