"""The wrapper as a package that travels with the logged model."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlflow

from steps.wrappers.onnx.engine import __main__ as engine
from tests.conftest import ROOT

from .asking import ask, text_of

PACKAGE = ROOT / "steps/wrappers/onnx"


def copied(logged: str, folder: Path, old: str, new: str) -> Any:
    """Return the model in *logged*, loaded from a copy in which the wrapper's code says *new* for *old*."""
    copy = Path(mlflow.artifacts.download_artifacts(logged, dst_path=str(folder)))
    file = copy / "artifacts/wrapper/model.py"
    source = file.read_text()
    assert old in source
    file.write_text(source.replace(old, new))
    return mlflow.pyfunc.load_model(str(copy))


def test_a_logged_model_has_its_package_of_code_and_no_pickle(logged: dict[str, str]) -> None:
    files = [path.relative_to(logged["chat"]) for path in Path(logged["chat"]).rglob("*") if path.is_file()]
    package = {f"artifacts/wrapper/{path.relative_to(PACKAGE)}" for path in PACKAGE.rglob("*.py")}
    assert {str(file) for file in files if file.suffix in (".py", ".pkl")} == {"onnx_chat.py", *package}


def test_two_versions_in_one_process_keep_apart(logged: dict[str, str], tmp_path: Path, chat: Any) -> None:
    line = "output.message()"
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    one = copied(logged["chat"], folders[0], line, '{"content": "one"}')
    two = copied(logged["chat"], folders[1], line, '{"content": "two"}')
    answers = [text_of(model.predict(ask("hello", max_tokens=2))[0]) for model in (one, two, one, chat)]
    assert answers[:3] == ["one", "two", "one"]
    assert answers[3] not in answers[:3]


def test_a_folder_whose_code_has_changed_runs_the_new_code(logged: dict[str, str], tmp_path: Path) -> None:
    first = copied(logged["chat"], tmp_path, "output.message()", '{"content": "first"}')
    (file,) = tmp_path.rglob("wrapper/model.py")
    file.write_text(file.read_text().replace('"first"', '"second"'))
    second = mlflow.pyfunc.load_model(str(file.parents[2]))
    assert [text_of(model.predict(ask("x"))[0]) for model in (first, second)] == ["first", "second"]


def test_importing_the_package_registers_nothing() -> None:
    program = "import mlflow, steps.wrappers.onnx.model as m; print(mlflow.models.model.__mlflow_model__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_the_package_imports_nothing_of_ours_outside_itself() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                within = node.level <= len(file.relative_to(PACKAGE).parts)
                assert within and (node.level or not str(node.module).startswith("steps")), file
            elif isinstance(node, ast.Import):
                assert not [each.name for each in node.names if each.name.startswith("steps")], file


def test_the_engine_imports_neither_mlflow_nor_pandas(onnx_folder: Path) -> None:
    command = [sys.executable, "-P", ROOT / "tests/programs/engine_imports.py", engine.__file__, onnx_folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert "onnxruntime_genai" in imported
    assert not imported & {"mlflow", "pandas", "torch", "transformers", "jinja2", "tokenizers"}
