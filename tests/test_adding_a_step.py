"""The worked example of docs/architecture.md adds a step in at most four files, and the step runs."""

import re
from pathlib import Path

import pytest
from mlflow import MlflowClient

from steps.config.command_line import compose_config
from tests.conftest import ROOT, committed, do_step, run

BLOCK = re.compile(r"^`([^`\n]+)`(?:, before `([^`\n]+)`)?:\n\n```\w+\n(.*?)```$", re.MULTILINE | re.DOTALL)
"""A block of the example: the path, the line before which it goes (none for a new file), and the text."""


def worked_example() -> list[tuple[str, str, str]]:
    """Return path, line and text of each block under the heading "A step"."""
    found = BLOCK.findall((ROOT / "docs" / "architecture.md").read_text().partition("### A step\n")[2])
    assert found
    return found


def carry_out(project: Path) -> None:
    """Add the step of the worked example to *project*."""
    for path, line, text in worked_example():
        file = project / path
        if not line:
            assert not file.exists()
            file.write_text(text)
            continue
        content = f"\n{file.read_text()}"
        assert f"\n{line}\n" in content, f"{path} has no line {line}"
        file.write_text(content.replace(f"\n{line}\n", f"\n{text}{line}\n", 1)[1:])


def test_adding_a_step_touches_at_most_four_files() -> None:
    assert len({path for path, _line, _text in worked_example()}) <= 4


@pytest.mark.slow
def test_the_step_of_the_worked_example_runs_as_an_entry_point(store: str, tmp_path: Path) -> None:
    fetched = do_step("fetch_model", compose_config([]))
    project = committed(tmp_path / "project")
    carry_out(project)
    parameters = ["-P", f"fetch_run_id={fetched.info.run_id}", "-P", "size_of_weights.unit=1"]
    done = run("mlflow", "run", str(project), "--env-manager", "local", "-e", "size_of_weights", *parameters)
    assert done.returncode == 0, done.stdout + done.stderr
    (added,) = MlflowClient().search_runs(["0"], "tags.step = 'size_of_weights'")
    assert added.info.status == "FINISHED"
    assert added.data.metrics["size_of_weights"] == fetched.data.metrics["fetch_model.snapshot.bytes"]
    assert added.data.params["size_of_weights.unit"] == "1"
    assert "step.fingerprint" in added.data.tags
    checks = run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_mlproject.py", cwd=project)
    assert checks.returncode == 0, checks.stdout
