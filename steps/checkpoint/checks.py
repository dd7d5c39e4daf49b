"""Can this checkpoint become what was asked for? Asked before a weight is downloaded or hashed.

Two tables of checks, in the order in which they are asked: each takes a folder, and raises StepError with fact, value
and remedy in one line. `require_usable` needs no weights; `require_fitting_weights` (weights_check.py) reads their
headers.
"""

import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from steps.checkpoint.tokenizer_check import read_json, read_settings, require_template, require_tokenizer
from steps.checkpoint.weights_check import read_config
from steps.records.errors import StepError

OTHER_MODEL = "choose another model, or one that is ONNX already with -P onnx=prebuilt"

CODE = "only code of its repository computes it, which is never run"

NOT_EQUAL = {
    "Gemma3ForCausalLM": "its builder knows one base of rotary positions, and transformers 5 states two",
    "InternLM2ForCausalLM": CODE,
    "OlmoForCausalLM": "its build normalises otherwise than transformers does",
    "Phi3SmallForCausalLM": CODE,
    "Phi3VForCausalLM": CODE,
    "Phi4MMForCausalLM": CODE,
    "PhiMoEForCausalLM": "its build runs on CUDA alone",
    "SmolLM3ForCausalLM": "its builder stops with KeyError: 'position_ids'",
    "VideoChatFlashQwenForCausalLM": CODE,
}
"""Architectures that the builder names, and whose build is not what transformers computes, and why.

Measured by `python -m benchmarks.architectures`; docs/reference/architectures.md has every one.
"""

ROPE = {
    "GptOssForCausalLM": ("yarn",),
    "LlamaForCausalLM": ("llama3",),
    "MistralForCausalLM": ("linear",),
    "Phi3ForCausalLM": ("longrope",),
    "Qwen2ForCausalLM": ("linear",),
}
"""Scalings of rotary positions that are built right, by architecture; measured likewise."""

LONG_ROPE_LIMIT = 4096
"""The only limit of LongRoPE across which onnxruntime-genai and the wrapper's engine can take an answer."""


@cache
def known_architectures() -> frozenset[str]:
    """Return the decoder-only architectures that onnxruntime-genai's builder exports, as config.json names them."""
    package = find_spec("onnxruntime_genai")
    assert package is not None
    assert package.submodule_search_locations is not None
    # The builder has no list of them: its code compares the name with one after the other.
    source = Path(package.submodule_search_locations[0]) / "models" / "builder.py"
    return frozenset(re.findall(r'architectures\[0\] == "(\w+ForCausalLM)"', source.read_text(encoding="utf-8")))


def require_usable(folder: Path, *, built: bool) -> None:
    """Raise StepError unless the checkpoint in *folder* can be wrapped, and, where it is *built*, become ONNX.

    Its weights need not be there.
    """
    for check in (*FOR_ANY, *(FOR_THE_BUILDER if built else ()), *FOR_CHAT):
        check(folder)


def require_buildable(folder: Path) -> None:
    """Raise StepError unless the builder can make ONNX of the checkpoint in *folder* that computes what it does."""
    for check in FOR_THE_BUILDER:
        check(folder)


def require_architecture(folder: Path) -> None:
    """Raise StepError unless config.json in *folder* names a model that transformers has code of its own for."""
    architecture = _architecture(folder)
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = read_json(folder / "config.json")
    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        fact = f"transformers does not know model_type={kind!r} in {folder / 'config.json'}"
        code = ", and the checkpoint's own code is never run" if config.get("auto_map") else ""
        msg = f"{fact}{code}: choose another model"
        raise StepError(msg)
    made = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if made != architecture:
        fact = (
            f"config.json in {folder} names {architecture} with model_type={kind}, of which transformers makes {made}"
        )
        msg = f"{fact}: choose a language model for chat, saved with save_pretrained"
        raise StepError(msg)
    read_config(folder)


def require_no_quantisation(folder: Path) -> None:
    """Raise StepError where config.json in *folder* says that the weights are quantised."""
    stated = read_json(folder / "config.json").get("quantization_config")
    if not stated:
        return
    method = str(stated.get("quant_method", "some way")) if isinstance(stated, dict) else str(stated)
    fact = f"the checkpoint in {folder} is quantised already (quantization_config: {method})"
    if method in ("gptq", "awq"):
        fact += ", which the pipeline wrapper, the reference, cannot load here"
    msg = f"{fact}: choose the checkpoint it was made from; -P onnx=... quantises it"
    raise StepError(msg)


def require_token_ids(folder: Path) -> None:
    """Raise StepError unless every token that config.json and generation_config.json name has a place in the model."""
    rows = read_json(folder / "config.json").get("vocab_size")
    for file in ("config.json", "generation_config.json"):
        stated = read_json(folder / file) if (folder / file).is_file() else {}
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            value = stated.get(key)
            for number in value if key == "eos_token_id" and isinstance(value, list) else [value]:
                # -1 for padding: "none", in checkpoints of Llama's first years.
                if number is None or (key == "pad_token_id" and number == -1):
                    continue
                if type(number) is not int or number < 0 or (isinstance(rows, int) and number >= rows):
                    fact = f"{folder / file} has {key}={value!r}, and vocab_size is {rows}"
                    msg = f"{fact}: set it to the number of a token, below vocab_size"
                    raise StepError(msg)


def require_known_architecture(folder: Path) -> None:
    """Raise StepError unless the builder exports the architecture of the checkpoint in *folder* as it is."""
    architecture = _architecture(folder)
    if architecture not in known_architectures():
        msg = f"onnxruntime-genai's builder does not know the architecture {architecture}: {OTHER_MODEL}"
        raise StepError(msg)
    if architecture in NOT_EQUAL:
        msg = f"{architecture} cannot be built by onnxruntime-genai 0.18 ({NOT_EQUAL[architecture]}): {OTHER_MODEL}"
        raise StepError(msg)


def require_known_positions(folder: Path) -> None:
    """Raise StepError where the build does not scale rotary positions as config.json in *folder* asks for."""
    architecture = _architecture(folder)
    config = read_json(folder / "config.json")
    for name in _scalings(config):
        if name != "default" and name not in ROPE.get(architecture, ()):
            fact = f"config.json in {folder} scales rotary positions as {name!r}, which {architecture} is built without"
            msg = f"{fact}: {OTHER_MODEL}"
            raise StepError(msg)
        limit = config.get("original_max_position_embeddings", LONG_ROPE_LIMIT)
        if name == "longrope" and limit != LONG_ROPE_LIMIT:
            fact = f"config.json in {folder} has original_max_position_embeddings={limit!r}"
            msg = f"{fact}, and onnxruntime-genai takes an answer across {LONG_ROPE_LIMIT} only: {OTHER_MODEL}"
            raise StepError(msg)


def require_plain_layers(folder: Path) -> None:
    """Raise StepError where the builder takes layers for others, without a word: Granite's hybrids."""
    if _architecture(folder) != "GraniteMoeHybridForCausalLM":
        return
    config = read_json(folder / "config.json")
    built = {
        "position_embedding_type": config.get("position_embedding_type") == "rope",
        "layer_types": all(each == "attention" for each in _listed(config.get("layer_types")) or ["mamba"]),
        "num_local_experts": not config.get("num_local_experts"),
    }
    if wrong := next((key for key, right in built.items() if not right), None):
        found = f"config.json in {folder} has {wrong}={config.get(wrong)!r}"
        fact = f"{found}, and the builder makes only attention layers with rotary positions"
        msg = f"{fact[:400]}: {OTHER_MODEL}"
        raise StepError(msg)


def require_end(folder: Path) -> None:
    """Raise StepError unless some file of the checkpoint in *folder* names a token that ends an answer."""
    files = [folder / name for name in ("config.json", "generation_config.json")]
    named = [read_json(path).get("eos_token_id") for path in files if path.is_file()]
    if all(value in (None, []) for value in named) and not read_settings(folder).get("eos_token"):
        msg = f"the checkpoint in {folder} names no end token: set eos_token in its tokenizer_config.json"
        raise StepError(msg)


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _architecture(folder: Path) -> str:
    path = folder / "config.json"
    try:
        return str(read_json(path)["architectures"][0])
    except (KeyError, TypeError, IndexError) as error:
        msg = f"{path} names no architecture ({error!r}): choose a checkpoint that save_pretrained wrote"
        raise StepError(msg) from error


def _scalings(config: Mapping[str, Any]) -> list[str]:
    """Return the names of the scalings of rotary positions in *config*, in any of the forms that there have been."""
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(stated, dict):
        return [str(stated)]
    parts = [part for part in stated.values() if isinstance(part, dict)] or [stated]
    names = [str(part.get("rope_type") or part.get("type") or "default") for part in parts]
    return ["longrope" if name == "su" else name for name in names]


Check = Callable[[Path], None]
FOR_THE_BUILDER: tuple[Check, ...] = (require_known_architecture, require_known_positions, require_plain_layers)
FOR_ANY: tuple[Check, ...] = (require_no_quantisation, require_token_ids)
FOR_CHAT: tuple[Check, ...] = (require_architecture, require_tokenizer, require_end, require_template)
"""The checks, in their order: those that need transformers come last, since importing it takes seconds."""
