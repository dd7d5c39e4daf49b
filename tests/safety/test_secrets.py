"""A token that is given as a parameter, or in a git URL, is nowhere afterwards.

Tokens in every other place, in a flow that runs: tests/flows/test_secret_scan.py.
"""

import sqlite3
import sys
from pathlib import Path

import mlflow
import pytest

from steps.config.command_line import translate
from steps.records.errors import ConfigError
from tests.conftest import ROOT, run

TOKEN = "hf_" + "abcdefGHIJKL0123456789"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--hf_token", "anything"],
        ["--hub.api_key", "anything"],
        ["--question", f"use {TOKEN} please"],
        ["--overrides", f"model=hub model.repo_id={TOKEN}"],
        [f"model.path={TOKEN}"],
        ["--model.repo_id", "https://me:s3cret@example.org/model"],
        ["--question", "ghp_abcdefghij0123456789abcd"],
        ["--overrides", TOKEN],
        ["--overrides", f"question='{TOKEN}"],
        [f"{TOKEN}=1"],
        ["+hub.token=anything"],
        ["--overrides", "'+aws_secret_access_key=anything'"],
    ],
)
def test_what_looks_like_a_secret_is_refused_and_not_repeated(arguments: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"=\*\*\* looks like a secret") as caught:
        translate(arguments)
    assert not [word for word in ("anything", TOKEN, "s3cret", "ghp_") if word in str(caught.value)]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--build_onnx_wrapper.max_tokens", "64"],
        ["--question", "What is a token? See https://example.org/a@b and mail me@example.org"],
        ["--model.repo_id", "hf_internal/tiny"],
        ["--hf_token", ""],
    ],
)
def test_what_only_reads_like_one_is_not(arguments: list[str]) -> None:
    translate(arguments)


@pytest.mark.slow
def test_the_run_of_a_command_that_is_refused_keeps_no_password_of_its_git_url(
    store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "mlflow.source.git.repoURL"
    made = mlflow.MlflowClient().create_run("0", tags={url: "https://me:s3cret@example.org/project.git"})
    monkeypatch.setenv("MLFLOW_RUN_ID", made.info.run_id)
    code = "from steps.flow.entry import command; command('main', print)"
    assert run(sys.executable, "-c", code, "seed=many").returncode == 2
    assert mlflow.get_run(made.info.run_id).data.tags[url] == "https://example.org/project.git"


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_token_given_with_P_is_in_no_run_and_no_log(tmp_path: Path) -> None:
    done = run("mlflow", "run", str(ROOT), "--env-manager", "local", "-P", f"hub.thing={TOKEN}", cwd=tmp_path)
    assert done.returncode != 0
    assert "main: hub.thing=*** looks like a secret" in done.stderr
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        assert database.execute("SELECT count(*) FROM runs").fetchone() == (0,)
        assert database.execute("SELECT count(*) FROM params").fetchone() == (0,)
    assert TOKEN.encode() not in everything_in(tmp_path)
    # MLflow itself shows the command that it runs, before anything of ours has started.
    ours = [line for line in done.stderr.splitlines() if "mlflow.projects" not in line]
    assert not [line for line in ours if TOKEN in line]
