"""A full disk: the step's run is FAILED, one line says why, and with space again the flow completes."""

import subprocess

import pytest
from mlflow import MlflowClient

from steps.config.command_line import compose_config
from tests.conftest import do_step, run
from tests.shared_flow import run_chain

pytestmark = pytest.mark.slow

LIMIT = 1_200_000
"""Bytes that a file may have: enough for the database, not for any weights."""


def assert_it_failed_in_one_line(full: "subprocess.CompletedProcess[str]", step: str, fact: str) -> None:
    """Assert that in the command *full*, on a full disk, *step* said so once, with *fact*, and handed nothing over."""
    assert full.returncode == 1, full.stdout + full.stderr
    (line,) = [line for line in full.stderr.splitlines() if line.startswith(f"{step}: ")]
    assert fact in line
    assert "File too large" in line
    assert line.endswith("free some space, and give the same command again")
    assert "Traceback" not in full.stderr
    failed = MlflowClient().search_runs(["0"], f"tags.step = '{step}'", order_by=["start_time DESC"])[0]
    assert failed.info.status == "FAILED"
    assert not [tag for tag in failed.data.tags if tag.startswith("output.")]


@pytest.mark.parametrize(
    ("step", "override", "fact"),
    [
        ("build_pipeline_wrapper", "seed=0", "model.safetensors"),
        ("build_onnx_wrapper", "onnx=fp32_cpu", "onnxruntime-genai's builder failed: "),
    ],
    ids=["while a model is logged", "while ONNX is built"],
)
def test_on_a_full_disk_a_step_fails_in_one_line_and_with_space_it_completes(
    store: str, capsys: pytest.CaptureFixture[str], step: str, override: str, fact: str
) -> None:
    fetched = f"fetch_run_id={do_step('fetch_model', compose_config([])).info.run_id}"
    full = run("prlimit", f"--fsize={LIMIT}", "python", "-m", "steps", step, override, fetched)
    assert_it_failed_in_one_line(full, step, fact)

    if step == "build_onnx_wrapper":
        run_chain("steps=[fetch_model,build_onnx_wrapper]", override)
        said = capsys.readouterr().out
        assert "fetch_model             REUSED" in said
        assert "build_onnx_wrapper      FINISHED" in said


def test_on_a_full_disk_the_chain_stops_after_the_step_with_a_line_of_its_own(store: str) -> None:
    """The step fails while it logs an artifact."""
    full = run("prlimit", f"--fsize={LIMIT}", "python", "-m", "steps.main", "fetch_model.log_files_mb=5")
    assert_it_failed_in_one_line(full, "fetch_model", "[Errno 27]")
    (line,) = [line for line in full.stderr.splitlines() if line.startswith("main: ")]
    assert "fetch_model" in line
    runs = {one.data.tags["step"]: one.info.status for one in MlflowClient().search_runs(["0"])}
    assert runs == {"main": "FAILED", "fetch_model": "FAILED"}
