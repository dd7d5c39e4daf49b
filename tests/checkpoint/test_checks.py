"""A checkpoint that cannot become what was asked for is refused in one line, before its weights are read."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from steps.checkpoint.checks import LONG_ROPE_LIMIT, NOT_EQUAL, ROPE, known_architectures, require_usable
from steps.checkpoint.hub import fetch_checkpoint
from steps.checkpoint.manifest import require_weights
from steps.checkpoint.tokenizer_check import corrected_settings, require_tokenizer
from steps.config.command_line import compose_config
from steps.fetch_model import fetch
from steps.records.errors import StepError
from steps.wrappers.onnx.engine import og_model
from tests.families import FAMILIES
from tests.hub_server import serving_hub

from .broken import NAMES, change, llama, refusal

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4400000\n"


def test_a_whole_checkpoint_is_taken(checkpoint: Path) -> None:
    manifest, folder = fetch(compose_config(["model=local", f"model.path={checkpoint}"]))
    assert (folder, {file.path for file in manifest.files}) == (checkpoint, set(NAMES))


# What config.json says


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"architectures": ["NovelForCausalLM"]}, "does not know the architecture NovelForCausalLM: choose another"),
        ({"architectures": []}, "names no architecture"),
        ({"model_type": "internlm2", "auto_map": {"AutoModel": "m.M"}}, "own code is never run: choose another model"),
        ({"model_type": "llama"}, "names Phi3ForCausalLM with model_type=llama, of which transformers makes LlamaFor"),
        ({"quantization_config": {"quant_method": "fp8"}}, "(quantization_config: fp8): choose the checkpoint it was"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "(quantization_config: bitsandbytes): choose"),
        ({"quantization_config": {"quant_method": "gptq"}}, "which the pipeline wrapper, the reference, cannot load"),
        ({"eos_token_id": "2"}, "has eos_token_id='2', and vocab_size is 1024: set it to the number of a token"),
        ({"eos_token_id": [2, 5000]}, "has eos_token_id=[2, 5000], and vocab_size is 1024"),
        ({"pad_token_id": 1024}, "has pad_token_id=1024, and vocab_size is 1024"),
        ({"pad_token_id": [3]}, "has pad_token_id=[3], and vocab_size is 1024"),
        ({"hidden_size": "wide"}, "transformers cannot read"),
    ],
)
def test_a_config_of_something_else_is_refused(checkpoint: Path, values: dict[str, Any], line: str) -> None:
    change(checkpoint, "config.json", **values)
    assert line in refusal(checkpoint)


def test_several_end_tokens_and_no_padding_are_nothing_odd(checkpoint: Path) -> None:
    change(checkpoint, "config.json", eos_token_id=[1019, 1022], pad_token_id=-1)
    require_usable(checkpoint, built=True)


@pytest.mark.parametrize("form", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["dynamic", "yarn"])
def test_positions_that_the_builder_would_not_scale_are_refused_by_name(tmp_path: Path, form: str, kind: str) -> None:
    key = "type" if form == "rope_scaling" else "rope_type"
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", form: {key: kind, "factor": 4.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        StepError, match=f"scales rotary positions as '{kind}', which LlamaForCausalLM is built without"
    ):
        require_usable(tmp_path, built=True)


def test_long_rope_with_a_limit_that_the_engine_does_not_know_is_refused(tmp_path: Path) -> None:
    config = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "original_max_position_embeddings": 8192}
    scaled = {"max_position_embeddings": 131072, "rope_scaling": {"type": "longrope", "short_factor": [1.0]}}
    (tmp_path / "config.json").write_text(json.dumps(config | scaled))
    with pytest.raises(StepError, match=r"original_max_position_embeddings=8192, and .* across 4096 only"):
        require_usable(tmp_path, built=True)
    assert LONG_ROPE_LIMIT == og_model.LONG_ROPE_LIMIT


def test_what_the_builder_names_is_refused_or_has_code_of_transformers_own() -> None:
    assert set(NOT_EQUAL) | set(ROPE) <= known_architectures()
    assert known_architectures() - set(NOT_EQUAL) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


@pytest.mark.parametrize("architecture", sorted(NOT_EQUAL))
def test_an_architecture_whose_build_is_not_equal_is_refused_with_the_reason(tmp_path: Path, architecture: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    with pytest.raises(StepError) as refused:
        require_usable(tmp_path, built=True)
    assert architecture in str(refused.value)
    assert NOT_EQUAL[architecture] in str(refused.value)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "position_embedding_type=None"),
        (
            {"position_embedding_type": "rope", "layer_types": ["mamba", "attention"]},
            "layer_types=['mamba', 'attention']",
        ),
        (
            {"position_embedding_type": "rope", "layer_types": ["attention"], "num_local_experts": 8},
            "num_local_experts=8",
        ),
    ],
)
def test_a_granite_of_other_layers_is_refused(tmp_path: Path, values: dict[str, Any], line: str) -> None:
    config = {"architectures": ["GraniteMoeHybridForCausalLM"], "model_type": "granitemoehybrid", **values}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(StepError) as refused:
        require_usable(tmp_path, built=True)
    assert f"has {line}, and the builder makes only attention layers with rotary positions: choose another" in str(
        refused.value
    )


# Tokenizer and template


@pytest.mark.parametrize("name", ["LlamaTokenizer", "LlamaTokenizerFast"])
def test_a_tokenizer_class_with_rules_of_its_own_gives_way_to_tokenizer_json(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = corrected_settings(llama(tmp_path, name))
    assert settings is not None
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    said = capsys.readouterr().out
    assert f"tokenizer_class={name} reads otherwise than tokenizer.json" in said
    assert "both wrappers follow tokenizer.json" in said


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_that_is_read_as_it_says_is_left_alone(tmp_path: Path, family: str) -> None:
    assert corrected_settings(llama(tmp_path, "PreTrainedTokenizerFast", family)) is None


def test_a_tokenizer_that_transformers_never_reads_as_it_says_is_refused(tmp_path: Path) -> None:
    folder = llama(tmp_path, "LlamaTokenizerFast", "mistral")
    # transformers has rules of its own for every checkpoint of this type, whatever class it names.
    change(folder, "config.json", model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    with pytest.raises(
        StepError, match=r"otherwise than its tokenizer\.json says, whatever class is named \(.* becomes .*\): choose"
    ):
        require_tokenizer(folder)


def test_a_tokenizer_larger_than_the_embedding_is_refused(checkpoint: Path) -> None:
    change(checkpoint, "config.json", vocab_size=1022, eos_token_id=1019)
    change(checkpoint, "generation_config.json", eos_token_id=[1019])
    assert "gives ids up to 1023, and config.json has vocab_size=1022: save the model after resize_" in refusal(
        checkpoint
    )


def test_a_checkpoint_without_tokenizer_json_is_refused(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    assert "holds no tokenizer.json and no other tokenizer: write it with AutoTokenizer" in refusal(checkpoint)
    (checkpoint / "tokenizer.model").write_bytes(b"sentencepiece")
    assert "holds no tokenizer.json, only tokenizer.model: write it with AutoTokenizer" in refusal(checkpoint)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_a_git_lfs_pointer_is_refused(checkpoint: Path, name: str) -> None:
    (checkpoint / name).write_text(POINTER)
    line = refusal(checkpoint)
    assert f"{name} is a Git LFS pointer" in line
    assert line.endswith("with git lfs pull")


@pytest.mark.parametrize(
    ("template", "line"),
    [
        (None, "has no chat template, as base models have none: choose the instruct model, or put the template"),
        ("{{ raise_exception('no') }}", "renders no question (TemplateError: no): correct it"),
        ("{% for", "renders no question (TemplateSyntaxError"),
        ("{{ bos_token }}", "leaves out what the user says: correct it"),
        ([{"name": "tool_use", "template": "{{ messages }}"}], "has no chat template"),
    ],
)
def test_a_checkpoint_that_cannot_be_asked_is_refused(checkpoint: Path, template: Any, line: str) -> None:
    change(checkpoint, "tokenizer_config.json", chat_template=template)
    assert line in refusal(checkpoint)


def test_a_template_in_a_file_of_its_own_is_enough(checkpoint: Path) -> None:
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    (checkpoint / "chat_template.jinja").write_text(settings["chat_template"])
    change(checkpoint, "tokenizer_config.json", chat_template=None)
    require_usable(checkpoint, built=True)


def test_a_checkpoint_that_names_no_end_is_refused(checkpoint: Path) -> None:
    for file, key in (
        ("config", "eos_token_id"),
        ("generation_config", "eos_token_id"),
        ("tokenizer_config", "eos_token"),
    ):
        change(checkpoint, f"{file}.json", **{key: None})
    assert "names no end token: set eos_token in its tokenizer_config.json" in refusal(checkpoint)


# The folder


@pytest.mark.parametrize(
    ("files", "line"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "it is a LoRA adapter: merge it into its base"),
        (["model-q4.gguf"], "it holds GGUF, which llama.cpp runs: choose the checkpoint in safetensors"),
        (["genai_config.json", "model.onnx", "tokenizer.json"], "it is ONNX already: name its repository"),
        (["config.json", "pytorch_model.bin"], "it holds weights in *.bin: load them and save_pretrained"),
        (["consolidated.safetensors"], "its safetensors are named otherwise"),
        (
            ["checkpoint-10/config.json", "checkpoint-20/config.json"],
            "in checkpoint-10 and in checkpoint-20: name that",
        ),
        ([], "save the checkpoint with save_pretrained"),
    ],
)
def test_a_folder_of_another_kind_is_named_for_what_it_is(tmp_path: Path, files: list[str], line: str) -> None:
    for name in files:
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "folder" / name).write_text("{}")
    (tmp_path / "folder").mkdir(exist_ok=True)
    assert "holds no model*.safetensors: " in (said := refusal(tmp_path / "folder"))
    assert line in said


def test_a_file_is_no_folder(checkpoint: Path) -> None:
    with pytest.raises(StepError, match=r"model\.safetensors is no folder: name the folder that holds config\.json"):
        require_weights(checkpoint / "model.safetensors")


@pytest.mark.parametrize("name", ["model.safetensors", "generation_config.json"])
def test_a_link_that_leads_nowhere_is_refused_as_what_it_is(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    (checkpoint / name).symlink_to("../../blobs/1234")
    assert f"{name} is a link to ../../blobs/1234, which is not there: copy the checkpoint" in refusal(checkpoint)


def test_json_that_is_nested_too_deeply_is_refused(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text("[" * 100_000)
    assert "generation_config.json cannot be read (RecursionError" in refusal(checkpoint)


def test_an_adapter_on_a_hub_is_named_for_what_it_is(tmp_path: Path) -> None:
    with serving_hub(tmp_path / "huggingface") as hub:
        hub.repository("some/adapter").commit({"adapter_config.json": b"{}", "adapter_model.safetensors": b"1"})
        with pytest.raises(StepError, match="it is a LoRA adapter"):
            fetch_checkpoint("some/adapter", "main", offline=False)
