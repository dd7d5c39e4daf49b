"""A place for artifacts that cannot be written, or that others do not see, is found out at the start."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from steps.records.errors import StepError
from steps.safety.artifact_root import require_room, require_usable_artifacts
from tests.conftest import run
from tests.servers import free_port, mlflow_server, process, wait_for

SECRETS = {"AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY": "a-secret-that-s3-does-not-know"}


def ask(root: str) -> str:
    """Return what the check says of a run whose experiment has the artifact root *root*; empty if nothing."""
    client = MlflowClient()
    experiment = client.create_experiment(f"at {root} {os.urandom(4).hex()}", artifact_location=root)
    with mlflow.start_run(experiment_id=experiment) as started:
        if root.startswith("s3:"):
            import boto3

            boto3.setup_default_session()  # it keeps the credentials that it found first
        try:
            require_usable_artifacts(started)
        except StepError as error:
            return str(error)
        assert not client.list_artifacts(started.info.run_id), "nothing is left"
    return ""


def test_a_folder_that_can_be_written_is_fine_and_one_that_cannot_is_named(store: str, tmp_path: Path) -> None:
    assert ask(f"{tmp_path}/mit Leerzeichen und Ü") == ""
    line = ask("/proc/artifacts")
    assert line.startswith("artifacts cannot be written to /proc/artifacts/")
    assert "let that user write there" in line


def test_a_disk_without_room_is_named_with_both_figures(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=rf"GB are free in {tmp_path}, and 1000000.00 GB are needed: buy one"):
        require_room(tmp_path / "not" / "yet", 1e15, "buy one")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Yield a server with `--no-serve-artifacts`, and a folder in which it sees other files than this process."""
    folder = tmp_path_factory.mktemp("other_machine")
    (folder / "theirs").mkdir()
    hide = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none "{folder}/theirs" && exec "$@"', "sh")
    if run(*hide, "true").returncode:
        pytest.skip("needs a mount namespace, in which the server sees other files")
    root = ("--no-serve-artifacts", "--default-artifact-root", str(folder / "shared"))
    with mlflow_server(folder, *root, before=hide) as url:
        yield url, folder


@pytest.mark.slow
def test_a_folder_of_the_server_s_machine_is_refused_and_a_shared_one_is_fine(
    server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, folder = server
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    assert ask(str(folder / "shared")) == ""
    line = ask(str(folder / "theirs"))
    assert "does not find it there" in line
    assert "start the server with --serve-artifacts, or mount the same folder on both" in line
    assert "start the server with --serve-artifacts, or mount its folder here" in ask("/proc/artifacts")
    through = ask("mlflow-artifacts:/0")
    assert through.startswith("the server stores no artifacts for mlflow-artifacts:/0/")
    assert through.endswith("start it with --serve-artifacts")


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the address of an S3 that checks who asks, with the bucket `models`, and credentials that it knows."""
    pytest.importorskip("moto")
    boto3 = pytest.importorskip("boto3")
    from botocore.config import Config

    if shutil.which("moto_server") is None:
        pytest.skip("needs moto_server")
    port = str(free_port())
    with process("moto_server", "-p", port, INITIAL_NO_AUTH_ACTION_COUNT="4") as running:
        url = f"http://127.0.0.1:{port}"
        wait_for(f"{url}/moto-api/", running)
        # A request that is tried again on a busy machine would use up one of the four.
        patient = Config(read_timeout=600, retries={"total_max_attempts": 1})
        anyone = {"endpoint_url": url, "region_name": "us-east-1", "config": patient}
        anyone |= {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
        iam = boto3.client("iam", **anyone)
        iam.create_user(UserName="flow")
        every = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'
        iam.put_user_policy(UserName="flow", PolicyName="s3", PolicyDocument=every)
        key = iam.create_access_key(UserName="flow")["AccessKey"]
        boto3.client("s3", **anyone).create_bucket(Bucket="models")
        yield url, {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


@pytest.mark.slow
def test_a_bucket_is_written_with_the_right_credentials_only(
    s3: tuple[str, dict[str, str]], store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url, right = s3
    away = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": str(tmp_path / "none"), "HOME": str(tmp_path)}
    for name, value in ({"MLFLOW_S3_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"} | away).items():
        monkeypatch.setenv(name, value)
    # One server by three names, because MLflow keeps a client, with its credentials, for each address.
    assert "there are no credentials for it here" in ask("s3://models/runs")
    for name, value in (SECRETS | {"MLFLOW_S3_ENDPOINT_URL": url.replace("127.0.0.1", "localhost")}).items():
        monkeypatch.setenv(name, value)
    wrong = ask("s3://models/runs")
    assert wrong.startswith("the credentials for s3://models/runs/")
    assert " are refused (" in wrong
    assert not any(secret in wrong for secret in SECRETS.values())
    for name, value in (right | {"MLFLOW_S3_ENDPOINT_URL": f"{url}/"}).items():
        monkeypatch.setenv(name, value)
    assert ask("s3://models/runs") == ""
    assert "the bucket of s3://nowhere/runs/" in ask("s3://nowhere/runs")


@pytest.mark.slow
def test_credentials_that_have_expired_are_named_so(
    s3: tuple[str, dict[str, str]], store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """They come from a program, as single sign-on's do."""
    old = '{"Version": 1, "AccessKeyId": "x", "SecretAccessKey": "y", "Expiration": "2020-01-01T00:00:00Z"}'
    (tmp_path / "old.json").write_text(old)
    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {tmp_path}/old.json\n")
    away = {"AWS_CONFIG_FILE": str(tmp_path / "config"), "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)}
    for name, value in ({"MLFLOW_S3_ENDPOINT_URL": f"{s3[0]}//", "AWS_DEFAULT_REGION": "us-east-1"} | away).items():
        monkeypatch.setenv(name, value)
    line = ask("s3://models/more")
    assert line.startswith("the credentials for s3://models/more/")
    assert "have expired" in line
