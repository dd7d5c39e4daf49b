"""Whether the safetensors of a checkpoint are whole, and are the weights that its config.json asks for.

Read are the headers alone: the name, type and shape of each tensor, never the data. The format:
https://github.com/huggingface/safetensors#format.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open

from steps.checkpoint.manifest import INDEX, SINGLE, needed_files
from steps.checkpoint.tokenizer_check import LFS
from steps.records.errors import StepError, in_one_line

FLOATS = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class Tensor:
    """What a header says of one weight: the file that holds it, its type as safetensors writes it, and its shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]


def require_fitting_weights(folder: Path) -> None:
    """Raise StepError unless the weights in *folder* are whole, not quantised, and those of its config.json.

    The files that its index names are there: see `require_weights`.
    """
    tensors = read_headers(folder)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            fact = f"{name} in {folder / tensor.file} is of type {tensor.dtype}: these weights are quantised"
            msg = f"{fact}; choose the checkpoint that they were made from"
            raise StepError(msg)
    _compare(folder, tensors)


def read_headers(folder: Path) -> dict[str, Tensor]:
    """Return the tensors that transformers reads of *folder*, by name.

    Raises StepError for a file that is damaged or a Git LFS pointer, and for files by which transformers finds nothing.
    """
    paths = [path for path in needed_files(folder) if path.suffix == ".safetensors"]
    if folder / SINGLE in paths:
        pass  # then it is the only one
    elif (index := folder / INDEX).is_file():
        # What transformers reads: a file beside them may hold the same weights a second time.
        shards = set(json.loads(index.read_text())["weight_map"].values())
        paths = [path for path in paths if path.name in shards]
    else:
        fact = f"{folder} holds {paths[0].name}, and neither model.safetensors nor {INDEX}"
        msg = f"{fact}, by which transformers finds the weights: complete the checkpoint"
        raise StepError(msg)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        with path.open("rb") as file:
            if file.read(len(LFS)) == LFS.encode():
                msg = f"{path} is a Git LFS pointer of {path.stat().st_size} bytes: fetch the weights with git lfs pull"
                raise StepError(msg)
        try:
            with safe_open(path, framework="numpy") as weights:
                for name in weights.keys():  # noqa: SIM118  it is no mapping
                    part = weights.get_slice(name)
                    tensors[name] = Tensor(path.name, part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError, ValueError) as error:
            fact = f"{path} of {path.stat().st_size} bytes is cut off or damaged ({in_one_line(error)})"
            msg = f"{fact}: copy or download it again"
            raise StepError(msg) from error
    return tensors


def _compare(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise StepError unless *tensors* are those of the model that config.json in *folder* describes."""
    model = _empty_model(folder)
    wanted = {name: tuple(weight.shape) for name, weight in model.state_dict().items()}
    prefix, asks = f"{model.base_model_prefix}.", f"config.json asks {type(model).__name__} for"

    def held(name: str) -> Tensor | None:
        # A model without a head was saved without the prefix, which transformers adds.
        return tensors.get(name) or tensors.get(name.removeprefix(prefix))

    missing = [name for name in wanted if held(name) is None and name not in model.all_tied_weights_keys]
    if missing:
        strange = next((name for name in tensors if name not in wanted), None)
        instead = f", and holds {strange}" if strange else ""
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        fact = f"{folder} lacks {missing[0]}{more}, of the {len(wanted)} weights that {asks}{instead}"
        msg = f"{fact[0:360]}: save the unwrapped, whole model with save_pretrained"
        raise StepError(msg)
    for name, shape in wanted.items():
        tensor = held(name)
        if tensor is not None and tensor.shape != shape:
            fact = f"{name} in {folder / tensor.file} has shape {list(tensor.shape)}, and {asks} {list(shape)}"
            msg = f"{fact}: put the config.json beside it that the weights were saved with"
            raise StepError(msg)
    ignored = re.compile("|".join([r"rotary_emb\.inv_freq$", *(model._keys_to_ignore_on_load_unexpected or [])]))
    for name, tensor in tensors.items():
        if ".layers." in f".{name}" and name not in wanted and prefix + name not in wanted and not ignored.search(name):
            fact = f"{name} in {folder / tensor.file} has no place in the model that {asks}"
            msg = f"{fact}: put the config.json beside it that the weights were saved with"
            raise StepError(msg)


def read_config(folder: Path) -> Any:  # noqa: ANN401  transformers has no types
    """Return config.json in *folder* as transformers reads it. Raises StepError when it makes no sense of it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # whatever a configuration of no sense raises
        msg = f"transformers cannot read {folder / 'config.json'} ({in_one_line(error)[:250]}): correct it"
        raise StepError(msg) from error


def _empty_model(folder: Path) -> Any:  # noqa: ANN401  transformers has no types
    """Return the model that config.json in *folder* describes, without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    config, auto = read_config(folder), cast(Any, AutoModelForCausalLM)
    try:
        with torch.device("meta"):
            return auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # as above
        msg = f"transformers makes no model of {folder / 'config.json'} ({in_one_line(error)[:250]}): correct it"
        raise StepError(msg) from error
