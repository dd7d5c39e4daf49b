"""A checkpoint as llama.cpp's GGUF, in 16 bits and quantised. Needs gguf and, to quantise, llama-cpp-python."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FULL = "F16"
"""What llama.cpp calls a file whose matrices are fp16."""


def make_gguf(checkpoint: Path, folder: Path, kind: str) -> Path:
    """Return the file in *folder* with *checkpoint* as *kind*, such as Q4_0 or F16, made unless it is there.

    A quantised one is what llama.cpp's own `quantize` makes of the F16, without an importance matrix. Raises
    RuntimeError when it cannot.
    """
    path = folder / f"{kind}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        if kind == FULL:
            write_gguf(checkpoint, partial)
        else:
            quantise(make_gguf(checkpoint, folder, FULL), partial, kind)
        partial.rename(path)
    return path


def write_gguf(checkpoint: Path, path: Path) -> None:
    """Write the Llama or Phi-3 in *checkpoint* to *path*: matrices in fp16, norms in fp32.

    Its tokens have names that say nothing, because it is asked by token ids.
    """
    import gguf
    from safetensors.torch import load_file
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(checkpoint)
    architecture = gguf.MODEL_ARCH[config.model_type.upper()]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _add_settings(writer, config)
    for file in sorted(checkpoint.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            array = tensor.float().numpy()
            if architecture == gguf.MODEL_ARCH.LLAMA and "q_proj" in name:
                array = permuted(array, config.num_attention_heads)
            if architecture == gguf.MODEL_ARCH.LLAMA and "k_proj" in name:
                array = permuted(array, config.num_key_value_heads)
            theirs = names[name.removesuffix(".weight")]
            writer.add_tensor(f"{theirs}.weight", array if array.ndim == 1 else array.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_settings(writer: Any, config: Any) -> None:  # noqa: ANN401  neither library has types
    import gguf

    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if window := getattr(config, "sliding_window", None):
        writer.add_sliding_window(window)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{number}".encode() for number in range(config.vocab_size)])
    writer.add_token_scores([0.0] * config.vocab_size)
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)


def permuted(weights: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Return a Llama's *weights* of queries or keys, [heads x head_dim, hidden], in the order of GGUF."""
    # transformers has the two halves of a rotation half a head apart, GGUF has them beside each other.
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, weights.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weights.shape))


def quantise(full: Path, path: Path, kind: str) -> None:
    """Write *full* to *path* as llama.cpp's `quantize` makes it *kind*. Raises RuntimeError when it cannot."""
    import llama_cpp

    parameters: Any = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    llama_cpp.llama_log_set(_silent(), ctypes.c_void_p(0))
    if failed := llama_cpp.llama_model_quantize(str(full).encode(), str(path).encode(), parameters):
        msg = f"llama.cpp could not quantise {full}: code {failed}"
        raise RuntimeError(msg)


@functools.cache  # llama.cpp calls it as long as it runs, so it must not be collected
def _silent() -> Any:  # noqa: ANN401  # a ctypes function
    import llama_cpp

    return llama_cpp.llama_log_callback(lambda _level, _text, _data: None)


def weight_types(path: Path) -> dict[str, int]:
    """Return how many weights of the GGUF file *path* have each type, the most first."""
    import gguf

    counts: dict[str, int] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        counts[tensor.tensor_type.name] = counts.get(tensor.tensor_type.name, 0) + int(tensor.n_elements)
    return dict(sorted(counts.items(), key=lambda each: -each[1]))


def weight_bytes(path: Path) -> int:
    """Return the bytes of the weights in the GGUF file *path*, without its tokenizer."""
    import gguf

    return sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(path).tensors)
