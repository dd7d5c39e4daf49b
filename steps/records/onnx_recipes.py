"""The recipes by which onnxruntime-genai's builder makes a checkpoint smaller, and what it cannot build of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

QUANTISED = ("int4", "int8")


@dataclass(frozen=True)
class Recipe:
    """What the weights of a build become.

    `precision` is the builder's -p. What follows concerns int4 and int8: `block_size` weights have one scale,
    `algorithm` is the builder's algo_config, `accuracy_level` 4 multiplies int8 activations and 0 those in fp32,
    weights that are not `symmetric` have a zero point beside their scale.

    With `shared_embedding` the embedding is read from the head's 8 bits. In int4 builds whose algorithm gives the head
    8 bits the builder does that itself; of int8 builds `share_embedding` makes it afterwards.
    """

    name: str
    precision: str
    block_size: int = 32
    algorithm: str = "default"
    accuracy_level: int = 4
    symmetric: bool = True
    shared_embedding: bool = False

    @property
    def quantised(self) -> bool:
        """Whether the weights have fewer bits than their type in memory."""
        return self.precision in QUANTISED

    @property
    def has_zero_points(self) -> bool:
        """Whether each block has a zero point beside its scale."""
        return not self.symmetric or self.algorithm.startswith("k_quant")

    @property
    def shares_after_the_build(self) -> bool:
        """Whether `share_embedding` has to follow the builder."""
        return self.shared_embedding and self.precision == "int8"


LADDER = (
    Recipe("int4", "int4"),
    Recipe("int4_mixed", "int4", algorithm="k_quant_mixed"),
    Recipe("int8_shared", "int8", block_size=64, shared_embedding=True),
    Recipe("int8", "int8"),
    Recipe("fp32", "fp32"),
)
"""The rungs for a CPU from small to large, one for each step in quality; docs/guides/models.md has their figures."""


def builder_arguments(recipe: Recipe) -> list[str]:
    """Return the part of the builder's command line that *recipe* says."""
    # A cache of the window's size alone crashes past twice the window; the mask is in the attention operator anyway.
    extra = ["hf_token=false", "windowed_kv_cache=false"]
    if recipe.quantised:
        extra += [
            f"block_size={recipe.block_size}",
            f"accuracy_level={recipe.accuracy_level}",
            f"algo_config={recipe.algorithm}",
            f"is_symmetric={str(recipe.symmetric).lower()}",
        ]
    return ["-p", recipe.precision, "--extra_options", *extra]


def unusable(recipe: Recipe, config: Mapping[str, Any]) -> str | None:
    """Return in one line why *recipe* cannot be built of a checkpoint with this config.json, or None where it can."""
    if not recipe.quantised:
        return None
    config = config.get("text_config") or config  # of a model that also sees or hears
    for name, columns in _columns(config).items():
        blocks = -(-columns // recipe.block_size)
        # onnxruntime packs two zero points into a byte across the end of a row, then cannot cut the rows apart.
        if blocks % 2 and recipe.precision == "int4" and recipe.has_zero_points and recipe.algorithm != "default":
            return (
                f"{recipe.algorithm} needs an even number of blocks in a row, and {name}={columns} makes {blocks} of "
                f"{recipe.block_size} weights: take another block size, or algorithm default"
            )
    if recipe.shares_after_the_build and (hidden := config.get("hidden_size", 0)) % recipe.block_size:
        return (
            f"blocks of {recipe.block_size} do not divide hidden_size={hidden}: the embedding cannot be "
            "read from the head's; take a block size that divides it"
        )
    if recipe.shared_embedding and not _ties_embedding(config):
        return "tie_word_embeddings=false: embedding and head differ; take a recipe that does not share them"
    if (
        recipe.precision == "int4"
        and not recipe.symmetric
        and recipe.algorithm == "default"
        and _ties_embedding(config)
    ):
        return (
            "tie_word_embeddings=true, and the builder cannot share an embedding of asymmetric weights: take symmetric "
            "ones, or algorithm k_quant"
        )
    return None


def _columns(config: Mapping[str, Any]) -> dict[str, int]:
    """Return the input sizes of the quantised matrices, by their names in config.json; none if it has others."""
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    if not hidden or not heads:
        return {}
    sizes = {"hidden_size": hidden, "intermediate_size": config.get("intermediate_size", hidden)}
    return sizes | {"num_attention_heads x head_dim": heads * (config.get("head_dim") or hidden // heads)}


def _ties_embedding(config: Mapping[str, Any]) -> bool:
    if "tie_word_embeddings" in config:
        return bool(config["tie_word_embeddings"])
    from transformers import AutoConfig

    # config.json leaves out what is its class's default, which differs from class to class.
    return bool(AutoConfig.for_model(config["model_type"]).tie_word_embeddings)
