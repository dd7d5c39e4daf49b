"""A feature whose package is not installed is refused in one line that names the file that installs it."""

import importlib.util

import pytest

from steps.config.command_line import compose_config
from steps.config.validation import EXTRAS
from steps.records.errors import ConfigError
from tests.conftest import ROOT

ASKED = {
    "build_onnx_wrapper.calibration.samples": "8",
    "evaluate.harness.tasks": "[arc_easy]",
    "register.bom": "true",
    "register.sign_key": "README.md",
    "register.verify_key": "README.md",
    "sweep.ray": "auto",
}


@pytest.mark.parametrize("key", EXTRAS)
def test_a_missing_extra_is_one_line_that_names_its_file(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package, file = EXTRAS[key]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == package else find(name, *more))
    with pytest.raises(ConfigError, match=rf"^{key}=.* cannot be used: expected {package} .*pip install -r {file}\)$"):
        # A calibration is null without its recipe: there is no key to set.
        compose_config([*(["onnx=int4_calibrated"] if "calibration" in key else []), f"{key}={ASKED[key]}"])
    assert (ROOT / file).is_file()


def test_the_default_lock_holds_no_package_of_an_extra() -> None:
    lock = (ROOT / "requirements.txt").read_text()
    assert not [
        name for name in ("auto-round", "cyclonedx", "model-signing", "lm-eval", "ray==", "packageurl") if name in lock
    ]
