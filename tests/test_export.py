"""An export answers like the registered model, with its own two packages alone, and is what was registered."""

import json
import shutil
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import pytest
from backports import zstd
from mlflow import MlflowClient

from steps.config.command_line import compose_config
from steps.export import main
from steps.exporting.checksums import damage_of
from steps.extras.signing import sign_version
from steps.logged_models.logged_model import MODEL_MANIFEST
from steps.records.errors import ConfigError, StepError
from steps.records.files import describe, files_below, hash_file
from steps.registry.versions import run_of
from tests.conftest import last_run, run
from tests.extras.test_signing import keys
from tests.shared_flow import Flow

QUESTIONS = ["What is the capital of Spain?", "What is the capital of Côte d'Ivoire?", "Name the capital of Peru."]
HERE = "-P", "export.path=out/capitals"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("export.path=null", "export.path=null cannot be used: expected the folder to make"),
        ("export.model=models:/m-0123", "export.model=models:/m-0123 cannot be used: expected models:/<name>@<alias>"),
        ("export.model=runs:/a/b", "export.model=runs:/a/b cannot be used: expected models:/<name>@<alias>"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_starts(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{said}"):
        main(compose_config([override]), [])


def export(*overrides: str) -> Path:
    """Export in this process; return the folder."""
    config = compose_config(["export.model=models:/capitals@champion", *overrides])
    main(config, [])
    return Path(str(config.export.path))


@pytest.fixture(scope="module")
def exported(flow: Flow, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flow]:
    """Yield a copy of the flow, in whose folder `mlflow run -e export` made out/capitals; read only."""
    copy = flow.copy_to(tmp_path_factory.mktemp("exported") / "user")
    command = ["mlflow", "run", str(Path(__file__).parent.parent), "--env-manager", "local", "-e", "export", *HERE]
    model = ["-P", "export.model=models:/capitals@champion"]
    done = run(*command, *model, cwd=copy.folder, MLFLOW_TRACKING_URI="sqlite:///mlflow.db")
    assert done.returncode == 0, done.stdout + done.stderr
    yield Flow(copy.folder, done.stdout)


def folder_of(exported: Flow) -> Path:
    return exported.folder / "out" / "capitals"


@pytest.mark.slow
def test_the_example_answers_as_the_registered_model_in_an_environment_without_mlflow(
    exported: Flow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, python = folder_of(exported), f"{tmp_path}/bin/python"
    assert run("uv", "venv", "--python", "3.11", str(tmp_path)).returncode == 0
    done = run("uv", "pip", "install", "--python", python, "-r", f"{folder}/requirements.txt")
    assert done.returncode == 0, done.stderr
    absent = "('mlflow', 'torch', 'transformers', 'jinja2')"
    there = f"import importlib.util as u; print([name for name in {absent} if u.find_spec(name)])"
    assert run(python, "-c", there).stdout == "[]\n"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", exported.store)
    registered = mlflow.pyfunc.load_model("models:/capitals@champion")
    for question in QUESTIONS:
        (answer,) = registered.predict({"messages": [{"role": "user", "content": question}], "max_tokens": 256})
        example = run(python, str(folder / "example.py"), question, cwd=tmp_path)
        assert example.stdout == f"{answer['choices'][0]['message']['content']}\n", example.stderr


@pytest.mark.slow
def test_the_folder_has_what_it_takes_to_pass_the_model_on(exported: Flow) -> None:
    folder = folder_of(exported)
    assert run("sha256sum", "--quiet", "-c", "SHA256SUMS", cwd=folder).returncode == 0
    names = {path.relative_to(folder).as_posix() for path in files_below(folder)}
    assert {
        "LICENSE",
        "CHECKPOINT.md",
        "README.md",
        "bom.cdx.json",
        "model/model.onnx",
        "model/tokenizer.json",
    } <= names
    assert not {name for name in names if name.endswith((".pkl", ".pyc"))}
    bom = json.loads((folder / "bom.cdx.json").read_text())
    files = {each["name"]: each["hashes"][0]["content"] for each in bom["metadata"]["component"]["components"]}
    assert files == {name: hash_file(folder / name) for name in names if name.startswith("model/")}
    assert len((folder / "example.py").read_text().splitlines()) < 40


@pytest.mark.slow
def test_the_archive_unpacks_to_the_folder(exported: Flow, tmp_path: Path) -> None:
    packed = folder_of(exported).with_name("capitals.tar.zst")
    with zstd.open(packed) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        tar.extractall(tmp_path, filter="data")
    assert [path.name for path in tmp_path.iterdir()] == ["capitals"]
    unpacked = tmp_path / "capitals"
    assert damage_of(unpacked) is None
    assert describe(files_below(unpacked), unpacked) == describe(files_below(folder_of(exported)), folder_of(exported))


@pytest.mark.slow
def test_the_run_has_the_facts_and_not_the_files(exported: Flow) -> None:
    (found,) = exported.runs("export")
    folder = folder_of(exported)
    files = [path for path in files_below(folder) if path.name != "SHA256SUMS"]
    assert found.info.status == "FINISHED"
    assert found.data.tags["model"] == "models:/capitals/2"
    assert found.data.tags["example"] == "answers as the build did"
    assert found.data.tags["archive.sha256"] == hash_file(folder.with_name("capitals.tar.zst"))
    size = sum(path.stat().st_size for path in files)
    assert (found.data.metrics["files"], found.data.metrics["bytes"]) == (len(files), size)
    artifacts = {each.path for each in MlflowClient(exported.store).list_artifacts(found.info.run_id)}
    assert artifacts - {"code.diff"} == {"SHA256SUMS", "artifacts.json"}
    assert {key for key in found.data.params if "." in key} == {"export.model", "export.path", "export.archive"}


@pytest.mark.slow
def test_the_same_version_elsewhere_is_the_same_byte_for_byte(exported: Flow, own: Flow, tmp_path: Path) -> None:
    again = export(f"export.path={tmp_path}/again/capitals")
    assert (again / "SHA256SUMS").read_text() == (folder_of(exported) / "SHA256SUMS").read_text()
    packed = [folder.with_name("capitals.tar.zst") for folder in (again, folder_of(exported))]
    assert packed[0].read_bytes() == packed[1].read_bytes()


@pytest.mark.slow
def test_a_complete_export_is_said_so_a_missing_archive_is_made_and_anything_else_is_refused(
    own: Flow, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "capitals"
    (tmp_path / ".capitals.export").mkdir()  # what a kill left
    (tmp_path / ".capitals.export" / "half").touch()
    folder, packed = export(f"export.path={place}", "export.archive=false"), tmp_path / "capitals.tar.zst"
    assert [path.name for path in tmp_path.iterdir() if "capitals" in path.name] == ["capitals"]
    capsys.readouterr()
    export(f"export.path={place}")
    assert f"{place} already holds models:/capitals/2, complete" in capsys.readouterr().out
    first = packed.read_bytes()
    packed.unlink()
    export(f"export.path={place}")
    assert packed.read_bytes() == first

    def refused(said: str, *more: str) -> None:
        with pytest.raises(StepError, match=said):
            export(f"export.path={place}", *more)
        assert last_run("export").info.status == "FAILED"

    stated = (folder / "provenance.json").read_text()
    (folder / "provenance.json").write_text(stated.replace("capitals/2", "capitals/7"))
    refused(r"exists, and holds models:/capitals/7 instead of models:/capitals/2: remove it, or choose another path$")
    (folder / "provenance.json").write_text(stated)
    (folder / "model" / "model.onnx").write_bytes(b"")
    refused(r"is no complete export of models:/capitals/2: model/model.onnx has changed; remove it")
    shutil.rmtree(folder)
    refused(r"capitals.tar.zst exists without its folder: remove it")
    # Without an archive of its own too: the next export would take the old one for its own.
    refused(r"capitals.tar.zst exists without its folder: remove it", "export.archive=false")
    place.mkdir()
    refused(r"exists, and is no export: remove it, or choose another path$")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            "models:/capitals/1",
            r"is the pipeline version, .* export the ONNX version, -P export.model=models:/capitals/2$",
        ),
        ("models:/capitals@nobody", r"^export.model=models:/capitals@nobody is not there: .*name another version$"),
        ("models:/capitals/99", r"^export.model=models:/capitals/99 is not there: "),
    ],
)
def test_another_version_than_an_onnx_build_is_refused_in_one_line(
    own: Flow, tmp_path: Path, model: str, said: str
) -> None:
    with pytest.raises(StepError, match=said) as error:
        export(f"export.model={model}", f"export.path={tmp_path}/x")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def alter(folder: Path) -> Path:
    """Change one file of the logged model in *folder*; return it."""
    file = folder / "artifacts" / "onnx" / "chat_template.jinja"
    file.write_text(f"{file.read_text()} ")
    return file


def change_a_file(folder: Path, manifest: Path) -> None:
    alter(folder)


def change_a_file_and_the_list(folder: Path, manifest: Path) -> None:
    file, stated = alter(folder), json.loads(manifest.read_text())
    (entry,) = [each for each in stated["files"] if each["path"].endswith(file.name)]
    entry |= {"size": file.stat().st_size, "sha256": hash_file(file)}
    manifest.write_text(json.dumps(stated))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (change_a_file, "chat_template.jinja of .* has changed since it was logged"),
        (change_a_file_and_the_list, "its tag model.sha256 says .* they are not what was registered"),
    ],
)
def test_files_that_are_not_what_was_registered_are_not_exported(
    own: Flow, tmp_path: Path, harm: Callable[[Path, Path], None], said: str
) -> None:
    built = run_of(MlflowClient().get_model_version("capitals", "2"))
    uri = built.data.tags["output.model_uri"].removeprefix("models:/")
    folder = Path(MlflowClient().get_logged_model(uri).artifact_location.removeprefix("file://"))
    harm(folder, Path(built.info.artifact_uri.removeprefix("file://")) / MODEL_MANIFEST)
    with pytest.raises(StepError, match=said):
        export(f"export.path={tmp_path}/x/capitals")
    assert not list((tmp_path / "x").iterdir())


@pytest.mark.slow
def test_a_signature_goes_with_the_files_that_it_is_about(own: Flow, tmp_path: Path) -> None:
    private, _public = keys(tmp_path / "keys")
    version = MlflowClient().get_model_version("capitals", "2")
    model = run_of(version).data.tags["output.model_uri"].removeprefix("models:/")
    folder = Path(MlflowClient().get_logged_model(model).artifact_location.removeprefix("file://"))
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    alter(other)
    for signed, path in ((folder, tmp_path / "a"), (other, tmp_path / "b")):
        with mlflow.start_run():
            sign_version(version, private, signed)
        if signed == folder:
            assert (export(f"export.path={path}") / "signature" / "capitals-2.sig").is_file()
        else:
            with pytest.raises(StepError, match=r"is not one of its artifacts/onnx/chat_template.jinja: sign it again"):
                export(f"export.path={path}")
