"""onnx=auto is the default of every model but the embedded one, and chooses by what evaluate judges by."""

import subprocess
from pathlib import Path

import pytest
import yaml

from steps.config.command_line import compose_config
from steps.config.schema import ROOT, Config
from steps.flow.fingerprint import fingerprint
from steps.records.errors import ConfigError
from tests.conftest import run

QWEN = ["model=hub", "model.repo_id=Qwen/Qwen3-0.6B", "model.revision=main"]
LOCAL = ["model=local", "model.path=models/tiny_phi3"]


def ladder_of(*overrides: str) -> object:
    return compose_config(list(overrides)).build_onnx_wrapper.ladder


def test_the_embedded_model_has_the_recipe_and_the_task_that_were_made_for_it() -> None:
    assert compose_config([]).evaluate.scorer is None
    options = compose_config([]).build_onnx_wrapper
    assert options.ladder is None
    assert (options.precision and options.precision.value, options.block_size) == ("int4", 128)


@pytest.mark.parametrize("model", [["model=phi3_mini_4k"], ["model=smollm2_135m"], QWEN, LOCAL])
def test_every_other_model_has_its_recipe_chosen_unless_one_is_named(model: list[str]) -> None:
    assert ladder_of(*model) is not None
    assert ladder_of(*model, "onnx=int4_cpu") is None
    assert ladder_of(*model, "onnx=int8_cpu") is None


@pytest.mark.parametrize("model", [["model=phi3_mini_4k"], QWEN, LOCAL])
def test_every_other_model_is_asked_as_any_chat_model_unless_a_task_is_named(model: list[str]) -> None:
    assert compose_config(model).evaluate.scorer == "contains"
    assert compose_config([*model, "evaluate=capitals"]).evaluate.scorer is None


def test_the_configuration_that_hydra_shows_has_the_ladder() -> None:
    shown: subprocess.CompletedProcess[str] = run("python", "-m", "steps.main", *LOCAL, "--cfg", "job", "--resolve")
    assert yaml.safe_load(shown.stdout)["build_onnx_wrapper"]["ladder"]["task"] == "data/capitals.jsonl"


def test_it_chooses_by_evaluates_fidelity_gates_and_no_others() -> None:
    config = compose_config(["onnx=auto", "evaluate=general", "evaluate.gates.onnx_divergence.max=0.05"])
    ladder = config.build_onnx_wrapper.ladder
    assert ladder is not None
    assert ladder.gates.keys() == {"onnx_perplexity", "onnx_divergence", "onnx_top_token"}
    assert ladder.gates["onnx_divergence"]["max"] == 0.05
    assert (ladder.scorer, ladder.task) == (config.evaluate.scorer, config.evaluate.task)


def build_fingerprint(config: Config) -> str:
    return fingerprint("build_onnx_wrapper", config, {}).value


def test_a_gate_changes_an_auto_build_only_where_it_is_of_fidelity() -> None:
    fidelity, accuracy = "evaluate.gates.onnx_divergence.max=0.5", "evaluate.gates.onnx_accuracy.min=0.5"
    before = build_fingerprint(compose_config(["onnx=auto"]))
    assert build_fingerprint(compose_config(["onnx=auto", accuracy])) == before
    assert build_fingerprint(compose_config(["onnx=auto", fidelity])) != before
    assert build_fingerprint(compose_config([fidelity])) == build_fingerprint(compose_config([]))


def test_a_changed_question_file_changes_an_auto_build(tmp_path: Path) -> None:
    task = tmp_path / "task.jsonl"
    task.write_text((ROOT / "data" / "capitals.jsonl").read_text())
    auto, named = (compose_config([f"onnx={name}", f"evaluate.task={task}"]) for name in ("auto", "int4_cpu"))
    before = build_fingerprint(auto), build_fingerprint(named)
    task.write_text(f"{task.read_text()}\n")
    assert build_fingerprint(auto) != before[0]
    assert build_fingerprint(named) == before[1]


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["build_onnx_wrapper.precision=int8"], "precision=int8 cannot be used: expected null, because onnx=auto"),
        (["build_onnx_wrapper.execution_provider=cuda"], "execution_provider=cuda cannot be used: expected cpu"),
        (
            ["build_onnx_wrapper.ladder.recipes=[int5]"],
            "recipes=['int5'] cannot be used: expected some of int4, int4_m",
        ),
        (
            [f"~evaluate.gates.{name}" for name in ("onnx_perplexity", "onnx_divergence", "onnx_top_token")],
            "evaluate.gates has no limit on onnx.fidelity.*, by which onnx=auto chooses: add one, or name a recipe",
        ),
    ],
)
def test_what_it_cannot_choose_by_is_refused_before_anything_starts(overrides: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_config(["onnx=auto", *overrides])
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_is_named_needs_each_of_its_values() -> None:
    with pytest.raises(ConfigError, match=r"build_onnx_wrapper.block_size=null cannot be used"):
        compose_config(["build_onnx_wrapper.block_size=null"])


def test_an_algorithm_that_the_builder_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="algorithm=gptq cannot be used: expected one of default"):
        compose_config(["build_onnx_wrapper.algorithm=gptq"])
