"""fetch_model as a user starts it: what it prints, logs, and how it ends."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import Run

from steps.checkpoint.manifest import FILES, MANIFEST, Manifest
from steps.config.command_line import compose_config
from steps.records.errors import StepError
from tests.conftest import ROOT, do_step, run
from tests.families import FAMILIES, save_checkpoint
from tests.hub_server import Hub, Repository, environment, serving_hub, sha256

NAME = "someone/small-model"
WEIGHTS = "model.safetensors"
TINY = ROOT / "models" / "tiny_phi3"
FILES_OF_THE_HUB = {"README.md": b"---\nlicense: mit\n---\n"} | {
    name: (TINY / name).read_bytes()
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", WEIGHTS)
}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving_hub(tmp_path / "huggingface") as hub:
        yield hub


@pytest.fixture
def repository(hub: Hub) -> Repository:
    repository = hub.repository(NAME)
    repository.commit(FILES_OF_THE_HUB)
    return repository


def newest_run() -> Run:
    (found,) = mlflow.search_runs(max_results=1, output_format="list")
    return found


@pytest.mark.slow
def test_a_private_branch_is_fetched_and_can_be_pinned_and_offline_needs_no_hub(
    hub: Hub, repository: Repository, store: str, tmp_path: Path
) -> None:
    repository.private, repository.readers, hub.tokens = True, {"hf_secret"}, {"hf_secret"}
    variables = environment(hub, tmp_path / "huggingface") | {"HF_TOKEN": "hf_secret"}
    command = ["python", "-m", "steps.fetch_model", "model=hub", f"model.repo_id={NAME}", "model.revision=main"]

    commit = repository.branches["main"]
    online = run(*command, "fetch_model.log_files_mb=0.001", **variables)
    assert online.returncode == 0, online.stderr
    assert f"{NAME}@main is commit {commit}; to pin it: -P model.revision={commit}" in online.stdout
    large = newest_run()
    text = mlflow.artifacts.load_text(f"{large.info.artifact_uri}/{MANIFEST}")
    manifest = Manifest.from_json(text)
    assert (manifest.source, manifest.location, manifest.revision, manifest.licence) == ("hub", NAME, commit, "mit")
    assert {file.path: (file.size, file.sha256) for file in manifest.files} == {
        path: (len(content), sha256(content)) for path, content in FILES_OF_THE_HUB.items()
    }
    assert large.data.tags["model.revision"] == commit
    assert not (Path(large.info.artifact_uri) / FILES).exists()
    assert "hf_secret" not in online.stdout + online.stderr + json.dumps(large.to_dictionary())

    hub.tokens = set()
    refused = run(*command, **variables)
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(f"fetch_model: {hub.url} does not accept HF_TOKEN (401")
    assert "Traceback" not in refused.stderr
    assert newest_run().info.status == "FAILED"

    offline = run(*command, "fetch_model.offline=true", **variables)
    assert offline.returncode == 0, offline.stderr
    small = newest_run()
    assert mlflow.artifacts.load_text(f"{small.info.artifact_uri}/{MANIFEST}") == text
    assert (Path(small.info.artifact_uri) / FILES / WEIGHTS).read_bytes() == FILES_OF_THE_HUB[WEIGHTS]


def test_a_local_checkpoint_is_logged_whole_when_it_is_small(store: str, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    for path, content in FILES_OF_THE_HUB.items():
        (checkpoint / path).write_bytes(content)
    do_step("fetch_model", compose_config(["model=local", f"model.path={checkpoint}"]))
    logged = Path(newest_run().info.artifact_uri) / FILES
    assert {path.name: path.read_bytes() for path in logged.iterdir()} == FILES_OF_THE_HUB


@pytest.mark.slow
def test_an_architecture_that_the_builder_lacks_is_named_before_the_weights_come(
    hub: Hub, repository: Repository, store: str, tmp_path: Path
) -> None:
    family = replace(FAMILIES["mistral"], architecture="Olmo2", options={})
    checkpoint = save_checkpoint(family, tmp_path / "olmo2")
    repository.commit({path.name: path.read_bytes() for path in checkpoint.iterdir()})
    command = ["python", "-m", "steps.fetch_model", "model=hub", f"model.repo_id={NAME}", "model.revision=main"]
    refused = run(*command, **environment(hub, tmp_path / "huggingface"))
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == (
        "fetch_model: onnxruntime-genai's builder does not know the architecture Olmo2ForCausalLM: "
        "choose another model, or one that is ONNX already with -P onnx=prebuilt"
    )
    assert "Traceback" not in refused.stderr
    assert not hub.asked(f"/cdn/{sha256((checkpoint / 'model.safetensors').read_bytes())}")

    # With ONNX from elsewhere the builder does not matter.
    do_step("fetch_model", compose_config(["onnx=prebuilt", *command[3:]]))
    assert newest_run().info.status == "FINISHED"


@pytest.mark.parametrize("config", [b"{}", b"no json", b'{"architectures": []}'])
def test_a_checkpoint_that_names_no_architecture_is_refused(store: str, tmp_path: Path, config: bytes) -> None:
    (tmp_path / "config.json").write_bytes(config)
    (tmp_path / WEIGHTS).write_bytes(FILES_OF_THE_HUB[WEIGHTS])
    with pytest.raises(StepError, match=r"config\.json (names no architecture|cannot be read)"):
        do_step("fetch_model", compose_config(["model=local", f"model.path={tmp_path}"]))
