"""What is typed, with MLflow's -P or Hydra's forms, is what the steps get; what cannot be used is refused."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from mlflow.projects.utils import load_project

from steps.config.command_line import HYDRA_OPTIONS, HYDRA_SWITCHES, compose_config, translate
from steps.config.schema import ROOT, Config
from steps.config.values import to_yaml
from steps.records.errors import ConfigError
from tests.conftest import run

TEXTS = {
    "plain": "hello",
    "spaces": "two  words, and more ",
    "single quote": "it's",
    "double quotes": 'say "hi" twice',
    "comma": "a,b",
    "equals sign": "a=b=c",
    "command substitution": "$(touch owned) `touch owned`; touch owned | cat",
    "braces": "{a} {{b}} {c.d}",
    "dictionary": "{a: 1}",
    "list": "[a, b]",
    "unicode": "Côte d'Ivoire 日本 🙂",
    "number": "007",
    "number with underscore": "1_000",
    "boolean": "true",
    "backslash": "C:\\new\\",
    "newline": "two\nlines",
    "comment": "a # b",
    "option": "--question",
    "dollar brace": "cost ${, all",
}


def config_of(*arguments: str) -> Config:
    overrides, flags = translate(list(arguments))
    assert not flags
    return compose_config(overrides)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_a_text_given_with_P_arrives_as_it_was_given(text: str) -> None:
    assert config_of("--question", text).question == text


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_the_chain_hands_a_text_on_to_its_steps_unchanged(text: str) -> None:
    overrides, _ = translate(["--question", text])
    assert config_of("--overrides", shlex.join(overrides)).question == text


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_the_resolved_configuration_that_is_logged_holds_the_text(text: str) -> None:
    assert yaml.safe_load(to_yaml(config_of("--question", text)))["question"] == text


def test_hostile_text_goes_through_the_shell_of_an_entry_point_unharmed(tmp_path: Path) -> None:
    # Not `${`: --cfg job --resolve, the only way to print and run nothing, resolves twice and stumbles over it.
    text = " ".join(text for text in TEXTS.values() if "${" not in text)
    command = load_project(str(ROOT)).get_entry_point("main").compute_command({"question": text}, None)
    done = subprocess.run(
        ["bash", "-c", f"{command} --cfg job --resolve"],
        cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert yaml.safe_load(done.stdout)["question"] == text
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--evaluate.limit", "null"], "limit", None),
        (["--evaluate.limit", "5"], "limit", 5),
        (["--overrides", "evaluate.limit=5"], "limit", 5),
        (["evaluate.limit=5"], "limit", 5),
        (["--overrides", ""], "limit", None),
        (["--evaluate.task", "'data/capitals.jsonl'"], "task", "data/capitals.jsonl"),
    ],
)
def test_every_form_of_an_override_means_the_same(arguments: list[str], key: str, value: object) -> None:
    assert getattr(config_of(*arguments).evaluate, key) == value


def test_overrides_hold_several_quoted_as_in_a_shell() -> None:
    config = config_of("--overrides", "seed=3 'question=what, now?' build_onnx_wrapper.block_size=64")
    assert (config.seed, config.question, config.build_onnx_wrapper.block_size) == (3, "what, now?", 64)


def test_overrides_add_and_delete_what_P_cannot() -> None:
    config = config_of("--overrides", "~evaluate.gates.onnx_accuracy '+evaluate.gates.new={metric: onnx.x.y, min: 1}'")
    assert "onnx_accuracy" not in config.evaluate.gates
    assert config.evaluate.gates["new"] == {"metric": "onnx.x.y", "min": 1}


def test_a_list_is_a_list_for_a_key_that_holds_one() -> None:
    assert config_of("--steps", "[evaluate,register]").steps == ["evaluate", "register"]


def test_an_interpolation_is_resolved() -> None:
    assert config_of("--register.name", "${model.name}_v2").register.name == "tiny_phi3_v2"


def test_a_group_brings_its_values_and_a_key_wins_over_it() -> None:
    config = config_of("--build_onnx_wrapper.block_size", "64", "--onnx", "int8_cpu")
    assert (config.build_onnx_wrapper.precision.value, config.build_onnx_wrapper.block_size) == ("int8", 64)


def test_a_model_from_the_hub_is_named_after_its_repository() -> None:
    config = config_of("model=hub", "model.repo_id=Qwen/Qwen3-0.6B", "model.revision=main")
    assert config.register.name == "Qwen3-0.6B"


def test_tasks_of_a_harness_that_is_not_installed_are_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as Python has it where there is none
    with pytest.raises(
        ConfigError, match=r"expected lm_eval in this environment \(pip install -r requirements-lm-eval"
    ):
        config_of("evaluate.harness.tasks=[arc_easy]")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--build_onnx_wrapper.blok_size", "3"], "blok_size=3; did you mean build_onnx_wrapper.block_size?"),
        (["--model", "phi4"], "unknown model=phi4; did you mean phi3_mini_4k?"),
        (["--build_onnx_wrapper.block_size", "abc"], "build_onnx_wrapper.block_size=abc cannot be used"),
        (["--build_onnx_wrapper.block_size", "33"], "build_onnx_wrapper.block_size=33 cannot be used: expected 16, 32"),
        (["--build_onnx_wrapper.precision", "int5"], "expected one of [int4, int8, fp16, fp32]"),
        (["--evaluate.task", "nope.jsonl"], "evaluate.task=nope.jsonl cannot be used: expected an existing file"),
        (["--model.path", "nope"], "model.path=nope cannot be used"),
        (["--model", "hub"], "no value for model.repo_id, model.revision"),
        (["--evaluate.gates.onnx_accuracy.min", "abc"], "evaluate.gates.onnx_accuracy has the limit 'abc'"),
        (["--register.name", "a;b"], "register.name=a;b cannot be used"),
        (["--steps", "[evaluat]"], "steps=['evaluat'] cannot be used"),
        (["--evaluate.harness.include_path", "nope"], "evaluate.harness.include_path=nope cannot be used"),
        (["--evaluate.harness.limit", "0"], "evaluate.harness.limit=0 cannot be used: expected at least 1"),
        (["evaluate.limit=1,2"], "evaluate.limit=1,2 gives several values"),
        (["--evaluate.limit", "1,2"], "evaluate.limit='1,2' cannot be used"),
        (["--overrides", "a='"], "overrides=a=' cannot be split"),
        (["evaluate"], "evaluate is not an override"),
        (["--question"], "--question has no value"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_named_with_its_value_in_one_line(arguments: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(*arguments)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_configuration_exits_with_2_and_one_line_and_logs_nothing(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/store.db"
    done = run(sys.executable, "-m", "steps.main", "model=phi4", MLFLOW_TRACKING_URI=store)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("main: unknown model=phi4; did you mean phi3_mini_4k?")
    assert done.stdout == ""
    assert not (tmp_path / "store.db").exists()


def test_help_shows_the_groups_and_the_configuration() -> None:
    done = run(sys.executable, "-m", "steps.main", "--help")
    assert done.returncode == 0
    assert "phi3_mini_4k" in done.stdout
    assert "block_size: 128" in done.stdout


@pytest.mark.slow
def test_hydras_multirun_makes_a_flow_of_each_value_and_leaves_nothing_in_the_folder(
    store: str, tmp_path: Path
) -> None:
    arguments = ["--multirun", "steps=[fetch_model]", "fetch_model.log_files_mb=10,20"]
    folder = tmp_path / "user"
    folder.mkdir()
    done = run(sys.executable, "-m", "steps.main", *arguments, cwd=folder, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    chains = MlflowClient().search_runs(["0"], "tags.step = 'main' and attributes.status = 'FINISHED'")
    assert len(chains) == 2
    assert not list(folder.iterdir())


def test_a_value_of_a_multirun_that_cannot_be_used_is_one_line(store: str, tmp_path: Path) -> None:
    arguments = ["--multirun", "evaluate.limit=0,1", "plan=true"]
    done = run(sys.executable, "-m", "steps.main", *arguments, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["main: evaluate.limit=0 cannot be used: expected at least 1"]


def test_no_key_of_the_configuration_is_called_like_a_flag_of_hydra() -> None:
    flags = {flag.lstrip("-") for flag in HYDRA_SWITCHES | HYDRA_OPTIONS}
    assert not flags & set(Config.__dataclass_fields__)
