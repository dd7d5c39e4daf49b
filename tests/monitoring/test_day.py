"""A day in small: a version is served and watched, a worse one is promoted by force, noticed, and rolled back."""

import json
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import load_file, save_file

from steps.build_onnx_wrapper import log_wrapper
from steps.config.command_line import compose_config
from steps.config.onnx import ExecutionProvider
from steps.logged_models.logged_model import logged_folder, record_model
from steps.onnx_build.export import build_onnx
from steps.records.onnx_recipes import Recipe
from steps.records.tags import DIGEST, OUTPUT
from steps.registry.aliases import changing, history, make_champion, number_with
from tests.conftest import ROOT, TINY, examples_of, last_run, run
from tests.serving.conftest import Server, Store, serving, wait_until
from tests.shared_flow import Flow

pytestmark = pytest.mark.slow

MODEL = "capitals"
SPEED = ("~monitor.gates.latency", "~monitor.gates.first_token")
"""What a busy machine decides is not judged here."""
COMMAND = (
    *("mlflow", "run", str(ROOT), "-e", "monitor", "--env-manager", "local"),
    *("-P", f"register.name={MODEL}", "-P", f"overrides={' '.join(SPEED)}"),
)


def damaged(folder: Path) -> Path:
    """Return a copy of the embedded checkpoint in *folder*, with so much noise that it forgets to end its answers."""
    folder.mkdir()
    for file in TINY.iterdir():
        if file.is_file() and file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.manual_seed(0)
    for file in TINY.glob("*.safetensors"):
        weights = {name: each + torch.randn_like(each) * each.std() for name, each in load_file(file).items()}
        save_file(weights, folder / file.name, metadata={"format": "pt"})
    return folder


def promote_by_force(folder: Path) -> str:
    """Register a damaged build under the good one's evaluation, make it champion, and return its number."""
    config, client = compose_config([]), MlflowClient()
    (folder / "onnx").mkdir()
    recipe = Recipe("fp32", "fp32")
    build_onnx(damaged(folder / "damaged"), folder / "onnx", recipe, ExecutionProvider.cpu, folder / "log")
    with mlflow.start_run(tags={"step": "build_onnx_wrapper"}) as active:
        uri = log_wrapper(folder / "onnx", "damaged", config.question, config.build_onnx_wrapper)
        with logged_folder(uri) as logged:
            mlflow.set_tags({f"{OUTPUT}model_uri": uri, DIGEST: record_model(uri, logged)})
    tags = client.get_model_version_by_alias(MODEL, "champion").tags
    model_id = uri.removeprefix("models:/")
    number = str(client.create_model_version(MODEL, uri, active.info.run_id, tags, model_id=model_id).version)
    with changing(MODEL):
        make_champion(MODEL, number, "a test was in a hurry")
    return number


def ask(server: Server, number: int = 200) -> None:
    """Ask *number* questions of the task, every fourth as a stream; return when all have a trace."""
    examples = (examples_of(compose_config([]).evaluate) * 2)[:number]
    before = server.metric("slm:traces_written_total")
    bodies = [{"messages": each.messages, "max_tokens": 32, "stream": at % 4 == 0} for at, each in enumerate(examples)]
    with ThreadPoolExecutor(8) as pool:
        assert {response.status_code for response in pool.map(server.post, bodies)} == {200}
    wait_until(lambda: server.metric("slm:traces_written_total") == before + number)


def monitor(*overrides: str, command: Sequence[str] = (sys.executable, "-m", "steps.monitor")) -> tuple[int, str, Run]:
    """Watch the champion; return exit code, output and run."""
    done = run(*command, *overrides, *([] if "mlflow" in command else [f"register.name={MODEL}", *SPEED]))
    return done.returncode, done.stdout + done.stderr, last_run("monitor")


def verdicts(watching: Run) -> dict[str, str]:
    found = json.loads(mlflow.artifacts.load_text(f"{watching.info.artifact_uri}/gates.json"))["gates"]
    return {each["gate"]: each["verdict"] for each in found}


def test_a_worse_version_is_noticed_and_rolled_back_and_the_server_follows(own: Flow, tmp_path: Path) -> None:
    good = number_with(MODEL, "champion")
    options = [f"serve.model=models:/{MODEL}@champion", "serve.follow_seconds=0.2", "serve.trace_text=true"]
    with serving(Store(own.store), tmp_path / "log", *options, "serve.max_waiting=100") as server:
        ask(server)
        code, output, watching = monitor("-P", "monitor.reask=20", command=COMMAND)
        assert code == 0, output
        assert watching.data.metrics["traffic.requests"] == 200
        assert watching.data.metrics["live.agreement"] == 1
        # Twenty prompts cannot tell whether agreement fell by a tenth.
        assert {gate for gate, verdict in verdicts(watching).items() if verdict != "passed"} <= {"agreement"}

        bad = promote_by_force(tmp_path)
        wait_until(lambda: f"Serving {MODEL}/{bad} in place of" in server.said())
        ask(server)
        code, output, watching = monitor("monitor.rollback=true")
        assert code == 1, output
        assert verdicts(watching)["cut_off"] == "failed"
        assert verdicts(watching)["prompt_lengths"] == "passed"
        assert watching.info.status == "FAILED"
        assert number_with(MODEL, "champion") == good
        change = history(MODEL)[-1]
        assert change.reason.startswith("rolled back by monitor: cut.difference")
        assert change.run_id == watching.info.run_id

        wait_until(lambda: f"Serving {MODEL}/{good} in place of" in server.said())
        ask(server)
        code, output, watching = monitor("monitor.rollback=true", "monitor.limit=200")
        assert code == 0, output
        assert watching.data.metrics["traffic.requests"] == 200
        assert watching.data.tags["verdict"] == "passed"
