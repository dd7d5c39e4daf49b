"""The rooms of steps/: how large they are, and that each opens with a map of its files; no step knows the flow.

Which room imports which: test_architecture.py.
"""

import ast
from pathlib import Path

import pytest

from steps.config.schema import STEPS
from steps.flow.fingerprint import sources_of
from tests.conftest import ROOT

MODULES = sorted(path for path in (ROOT / "steps").rglob("*.py"))
ROOMS = sorted(path.parent.name for path in (ROOT / "steps").glob("*/__init__.py"))
TOO_LONG = {"steps/wrappers/onnx_chat.py", "steps/wrappers/onnx_engine.py"}
"""Files above 350 lines, still: this set may only shrink."""


def room_of(path: Path) -> str:
    """Return the room of the module at *path*; of one that stands in steps/ itself, its own name."""
    return path.relative_to(ROOT / "steps").parts[0].removesuffix(".py")


@pytest.mark.parametrize("step", STEPS)
def test_no_step_imports_the_flow(step: str) -> None:
    assert not [path for path in sources_of(f"steps.{step}") if room_of(path) == "flow"]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_at_most_twelve_files_and_its_docstring_names_each(room: str) -> None:
    files = {path.stem for path in (ROOT / "steps" / room).glob("*.py")} - {"__init__", "__main__"}
    assert len(files) <= 12
    text = ast.get_docstring(ast.parse((ROOT / "steps" / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert {f"{name}.py" for name in files} - set(text.split()) == set()


def test_no_file_is_above_350_lines() -> None:
    long = {path for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 350}
    assert {path.relative_to(ROOT).as_posix() for path in long} <= TOO_LONG


def test_no_test_file_is_above_400_lines() -> None:
    tests = (ROOT / "tests").rglob("*.py")
    long = {path.name for path in tests if len(path.read_text(encoding="utf-8").splitlines()) > 400}
    assert long <= {"test_onnx_chat.py"}
