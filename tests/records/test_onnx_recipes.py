"""A recipe is the builder's arguments, or one line that says why it cannot be built."""

from typing import Any

import pytest

from steps.records.onnx_recipes import LADDER, Recipe, builder_arguments, unusable

SMOLLM2: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "tie_word_embeddings": True,
}


def test_every_rung_can_be_built_of_a_small_tied_model() -> None:
    assert [unusable(recipe, SMOLLM2) for recipe in LADDER] == [None] * len(LADDER)


def test_the_rungs_have_names_of_their_own() -> None:
    assert len({recipe.name for recipe in LADDER}) == len(LADDER)


@pytest.mark.parametrize(("block", "blocks"), [(128, 5), (64, 9)])
def test_an_odd_number_of_blocks_in_a_row_of_4_bits_with_zero_points_is_refused(block: int, blocks: int) -> None:
    reason = unusable(Recipe("mixed", "int4", block_size=block, algorithm="k_quant_mixed"), SMOLLM2)
    assert reason is not None
    assert f"hidden_size=576 makes {blocks} of {block} weights" in reason


def test_an_odd_number_of_blocks_in_a_row_is_no_matter_elsewhere() -> None:
    for recipe in (
        Recipe("default", "int4", block_size=128),
        Recipe("rtn", "int4", block_size=128, algorithm="rtn"),
        Recipe("int8", "int8", block_size=128, algorithm="k_quant"),
    ):
        assert unusable(recipe, SMOLLM2) is None


def test_the_heads_own_size_counts_where_it_is_not_the_hidden_size() -> None:
    reason = unusable(Recipe("mixed", "int4", algorithm="k_quant"), SMOLLM2 | {"head_dim": 32})
    assert reason is not None
    assert "num_attention_heads x head_dim=288 makes 9" in reason


def test_asymmetric_int4_is_refused_where_the_embedding_is_tied() -> None:
    recipe = Recipe("asymmetric", "int4", symmetric=False)
    assert "asymmetric" in str(unusable(recipe, SMOLLM2))
    assert unusable(recipe, SMOLLM2 | {"tie_word_embeddings": False}) is None


@pytest.mark.parametrize("config", [SMOLLM2 | {"tie_word_embeddings": False}, SMOLLM2 | {"hidden_size": 592}])
def test_an_embedding_is_shared_only_where_the_head_can_be_read_as_it(config: dict[str, Any]) -> None:
    assert unusable(Recipe("shared", "int8", block_size=64, shared_embedding=True), config) is not None


@pytest.mark.parametrize(("model_type", "tied"), [("llama", False), ("gemma2", True)])
def test_what_config_json_leaves_out_is_the_default_of_its_class(model_type: str, tied: bool) -> None:
    config = {key: value for key, value in SMOLLM2.items() if key != "tie_word_embeddings"} | {"model_type": model_type}
    reason = unusable(Recipe("shared", "int8", block_size=64, shared_embedding=True), config)
    assert (reason is None) == tied


def test_an_unquantised_recipe_says_nothing_of_blocks() -> None:
    arguments = builder_arguments(Recipe("fp32", "fp32"))
    assert arguments[:2] == ["-p", "fp32"]
    assert not any("block_size" in argument for argument in arguments)


def test_the_config_of_the_text_part_counts_where_a_model_has_several() -> None:
    nested = {"model_type": "gemma3", "text_config": SMOLLM2}
    assert "hidden_size=576" in str(unusable(Recipe("mixed", "int4", block_size=128, algorithm="k_quant"), nested))


def test_a_config_without_the_usual_names_is_left_to_the_builder() -> None:
    assert unusable(Recipe("int4", "int4"), {"model_type": "gpt2", "n_embd": 768, "tie_word_embeddings": True}) is None
