"""A signature says of every byte of a registered model that the owner of a key signed it, and of any other that not."""

from pathlib import Path

import mlflow
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from mlflow import MlflowClient

from steps.config.command_line import compose_config
from steps.records.errors import ConfigError, StepError
from steps.records.files import files_below
from tests.conftest import do_step, run
from tests.registry.models import built, evaluated


def keys(folder: Path, password: str | None = None) -> tuple[Path, Path]:
    """Return the files of a new private key and of its public key."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    how = serialization.BestAvailableEncryption(password.encode()) if password else serialization.NoEncryption()
    private, public = folder / "private.pem", folder / "public.pem"
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def signed(store: str, tmp_path: Path) -> tuple[Path, Path]:
    """Register `echo`, signed; return the public key and the folder of the champion's files."""
    private, public = keys(tmp_path / "keys")
    onnx = built(tmp_path, "yes")
    evaluate = evaluated(tmp_path, built(tmp_path, "Yes!"), onnx, ["yes"] * 60)
    overrides = [f"evaluate_run_id={evaluate.info.run_id}", f"register.sign_key={private}"]
    do_step("register", compose_config(["register.name=echo", *overrides]))
    model = MlflowClient().get_logged_model(onnx.data.tags["output.model_uri"].removeprefix("models:/"))
    return public, Path(model.artifact_location.removeprefix("file://"))


def verify(public: Path, *overrides: str) -> None:
    do_step("register", compose_config(["register.name=echo", f"register.verify_key={public}", *overrides]))


def test_what_was_signed_is_verified_and_says_how_many_files(
    signed: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    public, folder = signed
    verify(public)
    assert f"version 2 of echo is what the owner of {public} signed: {len(files_below(folder))} files" in (
        capsys.readouterr().out
    )
    verify(public, "register.version=1")


def test_one_changed_byte_a_missing_or_an_added_file_is_refused(signed: tuple[Path, Path]) -> None:
    public, folder = signed
    for path in (folder / "MLmodel", folder / "echo.py"):
        content = path.read_bytes()
        path.write_bytes(content.replace(b"a", b"b", 1))
        with pytest.raises(StepError, match=f"is not what the owner of .* signed: .*{path.name}"):
            verify(public)
        path.write_bytes(content)
    (folder / "extra.py").write_text("")
    with pytest.raises(StepError, match=r"signed: .*extra\.py"):
        verify(public)
    (folder / "extra.py").unlink()
    (folder / "echo.py").unlink()
    with pytest.raises(StepError, match=r"signed: .*echo\.py"):
        verify(public)


def test_another_key_is_refused(signed: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(StepError, match="is not what the owner of"):
        verify(keys(tmp_path / "others")[1])


def test_a_version_without_a_signature_is_said_to_have_none(signed: tuple[Path, Path]) -> None:
    MlflowClient().delete_model_version_tag("echo", "2", "signature")
    with pytest.raises(StepError, match="version 2 of echo is not signed: register it with -P register"):
        verify(signed[0])


@pytest.mark.slow
def test_the_command_of_openssf_verifies_a_download_too(signed: tuple[Path, Path], tmp_path: Path) -> None:
    public, _ = signed
    version = MlflowClient().get_model_version_by_alias("echo", "champion")
    signature = mlflow.artifacts.download_artifacts(version.tags["signature"], dst_path=str(tmp_path))
    model = mlflow.artifacts.download_artifacts("models:/echo@champion", dst_path=str(tmp_path / "download"))
    command = ["verify", "key", model, "--signature", signature, "--public_key", str(public)]
    done = run("python", "-m", "model_signing", *command)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_key_that_cannot_sign_is_refused_without_a_word_of_what_it_holds(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    client = MlflowClient()
    evaluate = client.search_runs(["0"], "tags.step = 'evaluate'")[0].info.run_id
    overrides = ["register.name=echo", f"evaluate_run_id={evaluate}"]
    locked, _ = keys(tmp_path / "locked", password="open sesame")
    with pytest.raises(StepError, match=r"locked/private\.pem cannot sign \(\w+\): give an elliptic-curve key"):
        do_step("register", compose_config([*overrides, f"register.sign_key={locked}"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIGN_KEY_PASSWORD", "open sesame")
        do_step("register", compose_config([*overrides, f"register.sign_key={locked}"]))
    with pytest.raises(ConfigError, match=r"register\.sign_key=/nowhere cannot be used: expected the file of a key"):
        compose_config(["register.sign_key=/nowhere"])


@pytest.mark.parametrize("password", [None, "open barley"])
def test_with_a_key_that_cannot_sign_a_first_registration_changes_nothing(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str | None
) -> None:
    if password:
        monkeypatch.setenv("SIGN_KEY_PASSWORD", password)
    locked, _ = keys(tmp_path / "locked", password="open sesame")
    evaluate = evaluated(tmp_path, built(tmp_path, "Yes!"), built(tmp_path, "yes"), ["yes"] * 60)
    overrides = [f"evaluate_run_id={evaluate.info.run_id}", f"register.sign_key={locked}"]
    with pytest.raises(StepError, match="cannot sign"):
        do_step("register", compose_config(["register.name=echo", *overrides]))
    assert not MlflowClient().search_registered_models()


@pytest.mark.slow
def test_the_private_key_is_in_no_run(signed: tuple[Path, Path], tmp_path: Path) -> None:
    secret = (tmp_path / "keys" / "private.pem").read_text().splitlines()[1]
    assert not [
        path for path in files_below(tmp_path) if path.name != "private.pem" and secret.encode() in path.read_bytes()
    ]
    done = run("python", "-m", "steps.register", f"register.sign_key=-----BEGIN PRIVATE KEY----- {secret}")
    assert done.returncode == 2
    assert "register.sign_key=*** looks like a secret" in done.stderr
    assert secret not in done.stdout + done.stderr
