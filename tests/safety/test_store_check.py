"""A server that the flow cannot work with is found out at the start, with one line; real servers all."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from email.utils import formatdate
from importlib.util import find_spec
from pathlib import Path
from time import time

import mlflow
import pytest
import requests

from steps.records.errors import StepError
from steps.safety.store_check import is_checked, mark_checked, require_usable_server
from tests.conftest import run
from tests.reverse_proxy import reverse_proxy
from tests.servers import free_port, mlflow_server, process, wait_for

pytestmark = pytest.mark.slow
PASSWORD = "a-long-password-of-a-test"
MLFLOW_2 = ("mlflow==2.22.5", "sqlalchemy<2.1")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("server")
    with mlflow_server(folder, "--artifacts-destination", str(folder / "artifacts")) as url:
        yield url


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Yield the URL of a server behind basic auth, which knows `admin`, `writer`, and `reader`, who may not write."""
    if find_spec("flask_wtf") is None:
        pytest.skip("basic auth needs Flask-WTF")
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = READ\nadmin_username = admin\n"
        f"database_uri = sqlite:///{folder}/auth.db\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    secrets = {"MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD, "MLFLOW_FLASK_SERVER_SECRET_KEY": "x" * 32}
    secrets["MLFLOW_AUTH_CONFIG_PATH"] = str(folder / "auth.ini")
    options = ("--app-name", "basic-auth", "--artifacts-destination", str(folder / "artifacts"))
    with mlflow_server(folder, *options, **secrets) as url:
        may = {"username": "writer", "resource_type": "experiment", "resource_id": "0", "permission": "EDIT"}
        for what, body in (
            ("2.0/mlflow/users/create", {"username": "reader", "password": PASSWORD}),
            ("2.0/mlflow/users/create", {"username": "writer", "password": PASSWORD}),
            ("3.0/mlflow/users/permissions/grant", may),
        ):
            requests.post(f"{url}/api/{what}", json=body, auth=("admin", PASSWORD), timeout=600).raise_for_status()
        yield url


@pytest.fixture(scope="session")
def mlflow_2() -> Path:
    """Return an environment with MLflow 2, made once on this machine."""
    folder = Path(tempfile.gettempdir()) / "slm-project-mlflow-2.22.5"
    if not (folder / "bin" / "mlflow").exists():
        uv = Path(sys.executable).with_name("uv")
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        python = ("--python", folder / "bin" / "python")
        if subprocess.run([uv, "pip", "install", "--quiet", *python, *MLFLOW_2], check=False).returncode:
            pytest.skip("uv cannot get MLflow 2 here")
    return folder


def ask(uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return what the check says of the store *uri*; empty if it says nothing."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    try:
        require_usable_server()
    except StepError as error:
        return str(error)
    return ""


def test_a_server_of_today_can_be_used_alone_and_behind_a_path(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(server, monkeypatch) == ""
    with reverse_proxy(server, "/tracking") as proxy:
        assert ask(proxy, monkeypatch) == ""
        without = ask(proxy.removesuffix("/tracking"), monkeypatch)
    assert "does not know logged models (404): use a server of MLflow 3.0 or later" in without
    assert without.endswith("check the address and its path")


@pytest.mark.parametrize(("seconds", "which"), [(-90, "ahead of"), (90, "behind")])
def test_a_clock_that_is_more_than_a_minute_off_is_said(
    server: str, monkeypatch: pytest.MonkeyPatch, seconds: int, which: str
) -> None:
    with reverse_proxy(server, date=formatdate(time() + seconds, usegmt=True)) as proxy:
        line = ask(proxy, monkeypatch)
    assert f"s {which} that of the tracking server" in line


def test_a_host_name_that_the_server_does_not_go_by_is_said(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with reverse_proxy(server, host="tracking.example.org") as proxy:
        line = ask(proxy, monkeypatch)
    assert "start it with --allowed-hosts" in line


def test_a_page_that_is_no_server_of_mlflow_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = str(free_port())
    with process(sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1", "-d", str(tmp_path)) as other:
        wait_for(f"http://127.0.0.1:{port}/", other)
        line = ask(f"http://127.0.0.1:{port}", monkeypatch)
    assert line.startswith(f"the tracking server http://127.0.0.1:{port} ")
    assert "501" in line


@pytest.mark.parametrize("who", ["", f"admin:wrong{PASSWORD}@"], ids=["without credentials", "with wrong ones"])
def test_a_server_behind_basic_auth_says_what_to_set(guarded: str, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    line = ask(guarded.replace("://", f"://{who}"), monkeypatch)
    fact = "refuses these credentials" if who else "asks for credentials"
    assert f"{fact} (401): set MLFLOW_TRACKING_USERNAME" in line
    assert PASSWORD not in line


def test_who_may_only_read_is_told_so_and_no_line_shows_the_password(guarded: str) -> None:
    with_password = guarded.replace("://", f"://reader:{PASSWORD}@")
    done = run("python", "-m", "steps", "fetch_model", MLFLOW_TRACKING_URI=with_password)
    assert done.returncode == 1
    assert "does not let this user do that" in done.stderr
    assert "give credentials that may write" in done.stderr
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stdout + done.stderr


def test_who_may_write_runs_a_step_and_no_line_shows_the_password(guarded: str) -> None:
    with_password = guarded.replace("://", f"://writer:{PASSWORD}@")
    done = run("python", "-m", "steps", "fetch_model", MLFLOW_TRACKING_URI=with_password)
    assert done.returncode == 0, done.stderr
    assert PASSWORD not in done.stdout + done.stderr


def test_a_server_of_mlflow_2_is_refused_before_any_work(mlflow_2: Path, tmp_path: Path) -> None:
    port = str(free_port())
    command = (str(mlflow_2 / "bin" / "mlflow"), "server", "--backend-store-uri", f"sqlite:///{tmp_path}/store.db")
    with process(*command, "--workers", "1", "--port", port, "--artifacts-destination", str(tmp_path)) as old:
        wait_for(f"http://127.0.0.1:{port}/health", old)
        done = run("python", "-m", "steps.main", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    assert done.returncode == 1
    assert "does not know logged models (it is MLflow 2.22.5) (404): use a server of MLflow 3.0" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_the_chain_has_asked_its_steps_do_not_ask_again(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_checked()
    mark_checked()
    assert is_checked()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    mlflow.set_tracking_uri(None)
    assert not is_checked()
