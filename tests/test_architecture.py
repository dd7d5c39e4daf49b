"""A room imports what docs/architecture.md says of it, and stands on the floor above the highest of that."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from steps.config.schema import STEPS
from tests.conftest import ROOT

ROW = re.compile(r"^\| (\d+) \| ([\w, ]+) \| .+ \| (.+) \|$", re.MULTILINE)
TABLE = [
    (int(floor), name, re.sub(r" \(.*?\)", "", imports).split(", "))
    for floor, names, imports in ROW.findall((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"))
    for name in names.split(", ")
]
FLOORS = {name: floor for floor, name, _imports in TABLE}
NOTHING = ["nothing of ours"]


def files_of(room: str) -> list[Path]:
    file = ROOT / "steps" / f"{room}.py"
    return [file] if file.is_file() else sorted((ROOT / "steps" / room).glob("*.py"))


def imports_of(file: Path) -> Iterator[str]:
    """Yield the rooms that *file* imports, without its `__main__` block."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    kept = [node for node in body if not (isinstance(node, ast.If) and "__main__" in ast.dump(node.test))]
    for node in ast.walk(ast.Module(kept, [])):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module and node.module.startswith("steps."):
            yield node.module.split(".")[1]


def test_the_table_has_every_room_and_every_step() -> None:
    rooms = {path.name for path in (ROOT / "steps").iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert rooms | {*STEPS, "main", "sweep", "serve", "export", "monitor"} == set(FLOORS)


def test_the_table_begins_on_the_highest_floor() -> None:
    floors = [floor for floor, _name, _imports in TABLE]
    assert floors == sorted(floors, reverse=True)


@pytest.mark.parametrize(("floor", "room", "listed"), TABLE, ids=[name for _floor, name, _imports in TABLE])
def test_a_room_imports_what_the_table_lists_and_is_on_the_lowest_floor(
    floor: int, room: str, listed: list[str]
) -> None:
    imported = {name for file in files_of(room) for name in imports_of(file)} - {room}
    assert sorted(imported) == ([] if listed == NOTHING else listed)
    assert floor == 1 + max((FLOORS[name] for name in imported), default=0)
