"""A logged model holds weights, text, and the project's own code: nothing that runs when it is read."""

from pathlib import Path

import pytest

from steps.config.schema import BUILD, REFERENCE
from tests.conftest import ROOT
from tests.shared_flow import Flow

pytestmark = pytest.mark.slow

WEIGHTS = {".safetensors", ".onnx", ".data"}
TEXT = {".json", ".yaml", ".txt", ".md", ".jinja", ""}


@pytest.fixture
def files(flow: Flow, logged_models: dict[str, Path]) -> dict[str, dict[Path, Path]]:
    """Return, for each candidate, the files that its step logged, by their path in the model.

    Bytecode that is newer than the flow is of tests that loaded the model from its store.
    """
    ended = flow.chain.info.end_time / 1000
    return {
        name: {
            path.relative_to(folder): path
            for path in folder.rglob("*")
            if path.is_file() and not (path.suffix == ".pyc" and path.stat().st_mtime > ended)
        }
        for name, folder in logged_models.items()
    }


def test_a_logged_model_holds_weights_text_and_our_own_code_only(files: dict[str, dict[Path, Path]]) -> None:
    ours = {path.read_bytes() for path in (ROOT / "steps" / "wrappers").rglob("*.py")}
    for name, logged in files.items():
        code = {path: file for path, file in logged.items() if path.suffix not in WEIGHTS | TEXT}
        assert {path.suffix for path in code} == ({".py"} if name == BUILD else set())
        assert all(file.read_bytes() in ours for file in code.values())


def test_what_is_named_as_text_is_text(files: dict[str, dict[Path, Path]]) -> None:
    assert files.keys() == {REFERENCE, BUILD}
    for logged in files.values():
        for path, file in logged.items():
            assert path.suffix not in TEXT or "\0" not in file.read_text(encoding="utf-8"), path
