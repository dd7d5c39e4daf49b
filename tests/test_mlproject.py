"""A name means the same everywhere: entry point, module, configuration, test."""

import re

import pytest
import yaml
from mlflow.projects.utils import load_project
from omegaconf import OmegaConf

from steps.config.command_line import compose_config
from steps.config.schema import ROOT, STEPS, Config
from steps.safety.processes import LAUNCHER_PID

PROJECT = load_project(str(ROOT))


def test_the_entry_points_are_the_steps_and_those_around_them() -> None:
    assert set(PROJECT._entry_points) == {"main", "sweep", "serve", "export", "monitor", *STEPS}


@pytest.mark.parametrize("name", ["main", "sweep", "serve", "export", "monitor", *STEPS])
def test_an_entry_point_runs_the_module_of_its_name(name: str) -> None:
    # Before anything of ours is imported, the shell knows who started it.
    module = f"steps {name}" if name in STEPS else f"steps.{name}"
    assert PROJECT.get_entry_point(name).command.startswith(f"{LAUNCHER_PID}=$PPID python -m {module} ")
    assert (ROOT / "steps" / f"{name}.py").is_file()


@pytest.mark.parametrize("step", STEPS)
def test_a_step_has_a_section_of_its_name_and_takes_the_runs_that_the_table_says(step: str) -> None:
    assert step in Config.__dataclass_fields__
    parameters = PROJECT.get_entry_point(step).parameters
    assert list(parameters) == [*(STEPS[made_by].run_key for made_by in STEPS[step].builds_on), "overrides"]
    assert STEPS[step].run_key is None or STEPS[step].run_key in Config.__dataclass_fields__


def test_the_commands_name_parameters_without_quotes_around_them() -> None:
    text = (ROOT / "MLproject").read_text()
    assert not re.search(r"['\"]\{\w+\}['\"]", text)


def test_conda_yaml_holds_a_python_pin_and_the_lock() -> None:
    environment = yaml.safe_load((ROOT / "conda.yaml").read_text())
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-r requirements.txt"]}]


def test_the_lock_leaves_torchs_own_cuda_to_torch() -> None:
    lock = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line[:1].isalnum()]
    assert any(line.startswith("torch==") for line in lock)
    assert not [line for line in lock if line.startswith(("nvidia", "triton", "cuda"))]


@pytest.mark.parametrize("model", ["tiny_phi3", "phi3_mini_4k"])
@pytest.mark.parametrize("onnx", ["int4_cpu", "int8_cpu", "fp32_cpu", "int4_cuda", "fp16_cuda"])
def test_every_model_goes_with_every_onnx_preset(model: str, onnx: str) -> None:
    config = compose_config([f"model={model}", f"onnx={onnx}"])
    assert config.model.name == model
    options = config.build_onnx_wrapper
    assert f"{options.precision.value}_{options.execution_provider.value}" == onnx


def test_every_key_of_the_configuration_has_a_type() -> None:
    keys = set(OmegaConf.load(ROOT / "conf" / "config.yaml")) - {"defaults", "hydra"}
    assert keys <= set(Config.__dataclass_fields__)
