"""A logged model holds weights, text, and the project's own code: nothing that runs when it is read."""

from pathlib import Path

import pytest

from steps.config.schema import BUILD, REFERENCE
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

WEIGHTS = {".safetensors", ".onnx", ".data"}
TEXT = {".json", ".yaml", ".txt", ".md", ".jinja", ""}


def files(folder: Path) -> dict[Path, Path]:
    """Return the files below *folder* by their path in it, without the bytecode of tests that loaded the model."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return {path.relative_to(folder): path for path in found}


def test_a_logged_model_holds_weights_text_and_our_own_code_only(logged_models: dict[str, Path]) -> None:
    ours = {path.read_bytes() for path in (ROOT / "steps" / "wrappers").rglob("*.py")}
    for name, folder in logged_models.items():
        code = {path: file for path, file in files(folder).items() if path.suffix not in WEIGHTS | TEXT}
        assert {path.suffix for path in code} == ({".py"} if name == BUILD else set())
        assert all(file.read_bytes() in ours for file in code.values())


def test_what_is_named_as_text_is_text(logged_models: dict[str, Path]) -> None:
    assert logged_models.keys() == {REFERENCE, BUILD}
    for folder in logged_models.values():
        for path, file in files(folder).items():
            assert path.suffix not in TEXT or "\0" not in file.read_text(encoding="utf-8"), path
