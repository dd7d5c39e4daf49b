"""Before an export appears its example answers, and reads what the wrapper reads."""

import shutil
from pathlib import Path

import pytest

from steps.config.onnx import ExecutionProvider
from steps.exporting.folder import EXAMPLE
from steps.exporting.rehearsal import Recorded, conversations_with, readable, rehearse_example
from steps.onnx_build.export import build_onnx
from steps.records.errors import StepError
from steps.records.onnx_recipes import Recipe
from tests.families import FAMILIES, save_checkpoint

ASKED = Recorded("What is the capital of Spain?", "The capital of Spain is Madrid.")


@pytest.fixture
def folder(fp32: Path, tmp_path: Path) -> Path:
    shutil.copytree(fp32, tmp_path / "model")
    shutil.copy(EXAMPLE, tmp_path)
    return tmp_path


def change(folder: Path, old: str, new: str) -> None:
    file = folder / EXAMPLE.name
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def test_it_returns_the_answer_and_leaves_nothing_in_the_folder(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    assert rehearse_example(folder, ASKED, "models:/x/1") == ASKED.answer
    assert sorted(folder.rglob("*")) == before


def test_one_that_reads_other_token_ids_than_the_wrapper_is_refused(folder: Path) -> None:
    change(folder, "encode(text, ", "encode(text + '!', ")
    said = r"reads \[{'role': 'user'.* as other token ids than the wrapper of models:/x/1"
    with pytest.raises(StepError, match=said):
        rehearse_example(folder, ASKED, "models:/x/1")


def test_one_that_fails_is_refused_with_its_last_line(folder: Path) -> None:
    change(folder, "print()", "raise RuntimeError('no such token')")
    with pytest.raises(StepError, match=r"^the example of models:/x/1 fails here \(RuntimeError: no such token\)"):
        rehearse_example(folder, ASKED, "models:/x/1")


def test_one_that_says_nothing_is_refused(folder: Path) -> None:
    change(folder, "print(text", "(text")
    change(folder, ', end="", flush=True)', ")")
    with pytest.raises(StepError, match=r"answers 'What is the capital of Spain\?' with ''"):
        rehearse_example(folder, ASKED, "models:/x/1")


def test_a_conversation_that_the_template_refuses_is_left_out(folder: Path) -> None:
    template = folder / "model" / "chat_template.jinja"
    no_system = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    template.write_text(no_system + template.read_text())
    assert len(conversations_with("?")) == 3
    assert len(dict(readable(folder / "model", "?"))) == 2
    assert rehearse_example(folder, ASKED, "models:/x/1") == ASKED.answer


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_the_example_reads_other_families_as_their_wrapper_does(name: str, tmp_path: Path) -> None:
    checkpoint, out = save_checkpoint(FAMILIES[name], tmp_path / "checkpoint"), tmp_path / "out"
    out.mkdir()
    build_onnx(checkpoint, out / "model", Recipe("fp32", "fp32"), ExecutionProvider.cpu, tmp_path / "builder.log")
    shutil.copy(EXAMPLE, out)
    assert rehearse_example(out, ASKED, name)  # which compares
