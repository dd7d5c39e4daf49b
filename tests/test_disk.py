"""A full disk: the step's run is FAILED, one line says why, and with space again the flow completes."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.conftest import run

pytestmark = pytest.mark.slow

LIMIT = 1_200_000
"""Bytes that a file may have: enough for the database, not for any weights."""


@pytest.fixture(scope="module")
def store(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a store with a finished run of fetch_model, for the cases that build on one."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "store.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{folder}/store.db"
    done = run("python", "-m", "steps.fetch_model", MLFLOW_TRACKING_URI=uri)
    assert done.returncode == 0, done.stderr
    return uri


@pytest.mark.parametrize(
    ("step", "override", "fact"),
    [
        ("fetch_model", "fetch_model.log_files_mb=5", "[Errno 27]"),
        ("build_pipeline_wrapper", "seed=0", "model.safetensors"),
        ("build_onnx_wrapper", "onnx=fp32_cpu", "onnxruntime-genai's builder failed: "),
    ],
    ids=["while an artifact is logged", "while a model is logged", "while ONNX is built"],
)
def test_on_a_full_disk_a_step_fails_in_one_line_and_leaves_nothing_to_reuse(
    store: str, step: str, override: str, fact: str
) -> None:
    command = ["python", "-m", "steps.main", f"steps=[{','.join(dict.fromkeys(['fetch_model', step]))}]", override]
    full = run("prlimit", f"--fsize={LIMIT}", *command, MLFLOW_TRACKING_URI=store)
    assert full.returncode == 1, full.stdout + full.stderr
    (line,) = [line for line in full.stderr.splitlines() if line.startswith(f"{step}: ")]
    assert fact in line
    assert "File too large" in line
    assert line.endswith("free some space, and give the same command again")
    assert "Traceback" not in full.stderr
    failed = MlflowClient(store).search_runs(["0"], f"tags.step = '{step}'", order_by=["start_time DESC"])[0]
    assert failed.info.status == "FAILED"
    assert not [tag for tag in failed.data.tags if tag.startswith("output.")]


def test_with_space_again_the_flow_completes(store: str) -> None:
    command = ["python", "-m", "steps.main", "steps=[fetch_model,build_onnx_wrapper]", "onnx=fp32_cpu"]
    done = run(*command, MLFLOW_TRACKING_URI=store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fetch_model             REUSED" in done.stdout
    assert "build_onnx_wrapper      FINISHED" in done.stdout
