"""The settings of a tokenizer are those that transformers reads, from whichever file names them."""

import json
from pathlib import Path

from steps.checkpoint.checks import require_end
from steps.checkpoint.policy import end_tokens, only_needed
from steps.checkpoint.snapshot import present
from steps.checkpoint.tokenizer_check import load_tokenizer, read_settings, require_template
from steps.config.command_line import compose_config
from steps.onnx_build.export import build_onnx
from steps.records.onnx_recipes import Recipe
from steps.wrappers.onnx.tokenizer import ChatTokenizer
from tests.conftest import do_step
from tests.families import FAMILIES, save_checkpoint

from .broken import change

ASKED = [{"role": "user", "content": "hello world"}]


def older(folder: Path) -> Path:
    """Return a checkpoint in *folder* that was saved when special_tokens_map.json alone named the tokens."""
    save_checkpoint(FAMILIES["llama"], folder)
    settings = read_settings(folder)
    named = {key: {"content": settings[key], "lstrip": False} for key in ("bos_token", "eos_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(named))
    change(folder, "tokenizer_config.json", bos_token=None, eos_token=None, added_tokens_decoder=None)
    for file in ("config.json", "generation_config.json"):
        change(folder, file, eos_token_id=None)
    template = "{{ bos_token }}{{ messages[0].content + eos_token }}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


def test_tokens_that_only_the_map_of_special_tokens_names_are_known(tmp_path: Path) -> None:
    folder = older(tmp_path / "older")
    require_template(folder)
    require_end(folder)
    assert end_tokens(folder) == [load_tokenizer(folder).eos_token_id]


def test_the_map_of_special_tokens_is_not_read_beside_added_tokens_as_transformers_does_not(tmp_path: Path) -> None:
    folder = older(tmp_path / "older")
    change(folder, "tokenizer_config.json", added_tokens_decoder={})
    assert "eos_token" not in read_settings(folder)


def test_both_wrappers_render_the_tokens_of_the_map_of_special_tokens(tmp_path: Path) -> None:
    folder = older(tmp_path / "older")
    cpu = compose_config(["onnx=fp32_cpu"]).build_onnx_wrapper.execution_provider
    build_onnx(folder, tmp_path / "onnx", Recipe("fp32", "fp32"), cpu, tmp_path / "log")
    with only_needed(folder) as own:
        meant = load_tokenizer(own).apply_chat_template(ASKED, tokenize=False)
    assert ChatTokenizer(tmp_path / "onnx").render(ASKED) == meant


def test_a_template_for_tools_of_its_own_comes_with_the_onnx_model_and_with_the_artifacts(
    store: str, tmp_path: Path
) -> None:
    folder = save_checkpoint(FAMILIES["llama"], tmp_path / "checkpoint")
    extra = Path("additional_chat_templates") / "tool_use.jinja"
    (folder / extra).parent.mkdir()
    (folder / extra).write_text("{{ tools }}")
    config = compose_config(["onnx=fp32_cpu", "model=local", f"model.path={folder}"])
    with present(do_step("fetch_model", config)) as snapshot:
        assert snapshot != folder
        cpu = config.build_onnx_wrapper.execution_provider
        build_onnx(snapshot, tmp_path / "onnx", Recipe("fp32", "fp32"), cpu, tmp_path / "log")
    assert (tmp_path / "onnx" / extra).read_text() == "{{ tools }}"
