"""The rooms of steps/: which imports which, how large they are, and that each opens with a map of its files."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from steps.config.schema import STEPS
from steps.flow.fingerprint import sources_of
from tests.conftest import ROOT

MODULES = sorted(path for path in (ROOT / "steps").rglob("*.py"))
ROOMS = sorted(path.parent.name for path in (ROOT / "steps").glob("*/__init__.py"))
TOO_LONG: set[str] = set()
"""Files above 350 lines, still: this set may only shrink."""


def room_of(path: Path) -> str:
    """Return the room of the module at *path*; of one that stands in steps/ itself, its own name."""
    return path.relative_to(ROOT / "steps").parts[0].removesuffix(".py")


def imports_of(path: Path) -> set[str]:
    """Return the rooms that the module at *path* imports, less its own, and less what its `__main__` block imports."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = [each for each in tree.body if not (isinstance(each, ast.If) and "__main__" in ast.dump(each.test))]
    names = [
        name
        for node in ast.walk(ast.Module(body, []))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    ]
    rooms = {name.split(".")[1] for name in names if name.startswith("steps.")}
    return rooms & set(ROOMS) - {room_of(path)}


def test_there_is_no_circle_between_rooms() -> None:
    arrows: dict[str, set[str]] = {room: set() for room in ROOMS}
    for path in MODULES:
        if room_of(path) in arrows:
            arrows[room_of(path)] |= imports_of(path)
    assert list(TopologicalSorter(arrows).static_order())  # graphlib.CycleError names the circle


@pytest.mark.parametrize("step", STEPS)
def test_no_step_imports_the_flow(step: str) -> None:
    assert not [path for path in sources_of(f"steps.{step}") if room_of(path) == "flow"]


@pytest.mark.parametrize("room", ["records", "evaluation", "wrappers"])
def test_the_ground_floor_imports_nothing_of_ours_but_records(room: str) -> None:
    found = {name for path in MODULES if room_of(path) == room for name in imports_of(path)}
    assert found <= {"records"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_at_most_twelve_files_and_its_docstring_names_each(room: str) -> None:
    files = {path.stem for path in (ROOT / "steps" / room).glob("*.py")} - {"__init__", "__main__"}
    assert len(files) <= 12
    text = ast.get_docstring(ast.parse((ROOT / "steps" / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert files - {word.removesuffix(".py") for word in text.split()} == set()


def test_no_file_is_above_350_lines() -> None:
    long = {path for path in MODULES if len(path.read_text(encoding="utf-8").splitlines()) > 350}
    assert {path.relative_to(ROOT).as_posix() for path in long} == TOO_LONG


def test_no_test_file_is_above_400_lines() -> None:
    tests = (ROOT / "tests").rglob("*.py")
    long = {path.name for path in tests if len(path.read_text(encoding="utf-8").splitlines()) > 400}
    assert long <= {"test_onnx_chat.py"}
