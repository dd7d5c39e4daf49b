"""No value of any key ends in a trace: a wrong one is refused by name, and a text that is free says so here."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, get_type_hints

import pytest

from steps.config.command_line import compose_config, translate
from steps.config.onnx import Calibration
from steps.config.schema import Config
from steps.config.validation import check
from steps.records.errors import ConfigError
from tests.conftest import run

ONNX = "build_onnx_wrapper."
BASES = {
    "": compose_config([]),
    f"{ONNX}ladder": compose_config(["onnx=auto"]),
    f"{ONNX}calibration": compose_config([]),
}
"""Configurations by the part whose keys are taken from them; all keys are taken from the first."""

BASES[f"{ONNX}calibration"].build_onnx_wrapper.calibration = Calibration(None, 1, 1, 1)

FREE = {
    "model.repo_id": "the hub knows which there are",
    "model.revision": "the hub",
    "model.name": "a name for the registry and the reports",
    "register.name": "the same",
    "register.reason": "a person's words",
    "question": "any question",
    "evaluate.harness.tasks": "lm-evaluation-harness, which evaluate loads before it measures",
    "sweep.objective": "the metrics that the trials have",
    "sweep.ray": "the cluster",
    "serve.model": "the store",
    "serve.host": "the machine, with serve.api_key_env",
    "serve.api_key_env": "the environment",
    "serve.cors_origins": "the browser",
    "export.path": "the disk",
    "fetch_run_id": "the store",
    "pipeline_run_id": "the store",
    "onnx_run_id": "the store",
    "evaluate_run_id": "the store",
}
"""The texts that no check of the configuration can judge, and who can."""


def keys(part: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every dotted key below *part* that is no section, and its type."""
    for name, kind in get_type_hints(type(part)).items():
        value = getattr(part, name)
        if is_dataclass(value):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


def wrong(kind: object) -> list[object]:
    """Return values of the type *kind* that fit almost no key."""
    if kind in (str, str | None):
        return ["nonsense", "é" * 300, "~nobody/there", "\udcff"]
    if kind in (int, int | None):
        return [-1, 2**63, -(2**63)]
    if kind in (float, float | None):
        return [-1.0, math.nan, math.inf, 1e30]
    if kind == list[str]:
        return [["nonsense"], ["\udcff"]]
    return [[-1], [2**63]] if kind == list[int] else []


CASES = [
    (base, key, value)
    for base, config in BASES.items()
    for key, kind in keys(config)
    for value in wrong(kind)
    if key.startswith(base)
]


def test_the_walk_reaches_every_section() -> None:
    sections = {field.name for field in fields(Config) if is_dataclass(getattr(BASES[""], field.name))}
    assert sections == {key.split(".")[0] for _base, key, _value in CASES if "." in key}


@pytest.mark.parametrize("base", BASES)
def test_a_wrong_value_of_any_key_is_refused_by_name(base: str) -> None:
    accepted = set()
    for of, key, value in CASES:
        if of != base:
            continue
        *parents, name = key.split(".")
        part: object = BASES[base]
        for parent in parents:
            part = getattr(part, parent)
        before = getattr(part, name)
        setattr(part, name, value)
        try:
            check(BASES[base])
        except ConfigError as error:
            assert key in str(error), (key, value, str(error))
        else:
            accepted.add((key, value if isinstance(value, str) else repr(value)))
        finally:
            setattr(part, name, before)
    assert {key for key, _value in accepted} <= FREE.keys(), sorted(accepted)
    assert "\udcff" not in {value for _key, value in accepted}


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        (["--build_pipeline_wrapper.dtype", "float1"], "did you mean float16?"),
        (["--build_onnx_wrapper.algorithm", "k_qant"], "did you mean k_quant?"),
        (["--build_onnx_wrapper.ladder", "{a: 1}"], "build_onnx_wrapper.ladder={a: 1} cannot be used"),
        (["onnx=auto", "--build_onnx_wrapper.ladder.gates.onnx_perplexity.max", "1"], "unknown key build_onnx_wrapper"),
        (["--overrides", "+evaluate.gates.new=3"], "evaluate.gates.new=3 is no gate"),
        (["onnx=auto", "--overrides", "+evaluate.gates.new=3"], "evaluate.gates.new=3 is no gate"),
    ],
)
def test_a_refusal_names_key_value_and_remedy(argument: list[str], said: str) -> None:
    overrides, _flags = translate(argument)
    with pytest.raises(ConfigError) as refused:
        compose_config(overrides)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_text_of_several_lines_is_refused_in_one_line() -> None:
    done = run("python", "-m", "steps.main", "--build_pipeline_wrapper.dtype", "float16\nfloat32")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "main: build_pipeline_wrapper.dtype=float16\\nfloat32 cannot be used"
    )
