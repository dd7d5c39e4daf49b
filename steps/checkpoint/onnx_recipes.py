"""The recipes by which onnxruntime-genai's builder quantises a checkpoint, and what it cannot build of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """What the weights of a build become.

    `precision` is the builder's -p. The other fields concern int4 and int8: `block_size` weights have one scale, `algorithm`
    is the builder's algo_config, `accuracy_level` 4 computes with int8 activations and 0 with fp32.
    `shared_embedding`: the embedding is read from the head's 8 bits, by `shared_embedding.share_embedding` after the build.
    """

    name: str
    precision: str
    block_size: int = 32
    algorithm: str = "default"
    accuracy_level: int = 4
    shared_embedding: bool = False


def builder_arguments(recipe: Recipe) -> list[str]:
    """Return the part of the builder's command line that *recipe* says."""
    # A cache of the window's size alone crashes past twice the window; the mask is in the attention operator anyway.
    extra = ["hf_token=false", "windowed_kv_cache=false"]
    if recipe.precision in ("int4", "int8"):
        extra += [
            f"block_size={recipe.block_size}",
            f"accuracy_level={recipe.accuracy_level}",
            f"algo_config={recipe.algorithm}",
        ]
    return ["-p", recipe.precision, "--extra_options", *extra]
