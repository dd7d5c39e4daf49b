"""A flow with a token in every place where people keep one leaves none behind: bytes searched, and a scanner asked."""

import sqlite3
import threading
from pathlib import Path

import psutil
import pytest

from tests.conftest import committed, run

pytestmark = pytest.mark.slow

PLANTED = {
    "HF_TOKEN": "hf_" + "plantedINenvironment0001",
    "MLFLOW_TRACKING_TOKEN": "planted-tracking-token-0002",
    "OPENAI_API_KEY": "sk-" + "plantedINenvironment000003",
    "AWS_SECRET_ACCESS_KEY": "planted/secret/access/key/of/forty/c0004",
}
NETRC = "planted-netrc-password-0005"
REMOTE = "ghp_" + "plantedINgitCONFIG000000000000000006"
UNCOMMITTED = "glpat-" + "plantedINaFILE00000007"
IN_CODE = {
    "HUB": "hf_" + "plantedINcode000000008",
    "PASSWORD": "a long s3cret 0009",
    "OWN": PLANTED["MLFLOW_TRACKING_TOKEN"],  # looks like no secret, but is one of the environment
}
PLUGINS = ("AWSKeyDetector", "BasicAuthDetector", "GitHubTokenDetector", "GitLabTokenDetector", "OpenAIDetector")


def scanned(folder: Path) -> list[str]:
    """Return the files below *folder* in which detect-secrets finds a token, with its kind."""
    from detect_secrets import SecretsCollection
    from detect_secrets.settings import transient_settings

    found = SecretsCollection()
    with transient_settings({"plugins_used": [{"name": name} for name in PLUGINS]}):
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix in (
                ".json",
                ".txt",
                ".md",
                ".yaml",
                ".html",
                ".log",
                ".diff",
                ".csv",
                "",
            ):
                found.scan_file(str(path))
        return [f"{name}: {secret.type}" for name, secret in found]


def test_tokens_planted_everywhere_are_found_nowhere_afterwards(tmp_path: Path) -> None:
    pytest.importorskip("detect_secrets")
    for name in ("checkout", "home", "temp", "user"):
        (tmp_path / name).mkdir()
    checkout = committed(tmp_path / "checkout")
    remote = f"https://someone:{REMOTE}@example.org/them/project.git"
    run("git", "remote", "add", "origin", remote, cwd=checkout)
    with (checkout / "README.md").open("a") as readme:
        readme.write(f'\ntoken = "{UNCOMMITTED}"\n')
    with (checkout / "steps" / "sweep.py").open("a") as source:
        source.writelines(f'\n{name} = "{value}"' for name, value in IN_CODE.items())
    (tmp_path / "home" / ".netrc").write_text(f"machine example.org login me password {NETRC}\n")
    secrets = [*PLANTED.values(), NETRC, REMOTE, UNCOMMITTED, *IN_CODE.values()]

    lines: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for process in psutil.process_iter(["cmdline"]):
                lines.add(" ".join(process.info["cmdline"] or []))
            over.wait(0.1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        places = {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temp")}
        store = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/user/mlflow.db"}
        command = ("mlflow", "run", str(checkout), "--env-manager", "local", "-P", "steps=[fetch_model]")
        done = run(*command, cwd=tmp_path / "user", **PLANTED, **places, **store)
    finally:
        over.set()
        watcher.join()
    assert done.returncode == 0, done.stdout + done.stderr
    diffs = [path.read_text() for path in (tmp_path / "user").rglob("code.diff")]
    assert diffs, "the change that is not committed is stored"
    assert all('+PASSWORD = "***"' in diff for diff in diffs)
    with sqlite3.connect(tmp_path / "user" / "mlflow.db") as database:
        urls = database.execute("SELECT value FROM tags WHERE key = 'mlflow.source.git.repoURL'").fetchall()
    assert urls == [("https://example.org/them/project.git",)] * 2, "the chain's and the step's"
    (tmp_path / "user" / "output.txt").write_text(done.stdout + done.stderr)
    left = [path for name in ("user", "temp") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert {(path, secret) for path in left for secret in secrets if secret.encode() in path.read_bytes()} == set()
    assert any("steps.main" in line for line in lines), "the command lines were seen"
    assert not [line for line in lines for secret in secrets if secret in line]
    assert scanned(tmp_path / "user") == []


def test_the_scanner_finds_such_tokens_where_they_are(tmp_path: Path) -> None:
    pytest.importorskip("detect_secrets")
    (tmp_path / "left.txt").write_text(f"{REMOTE}\n")
    assert len(scanned(tmp_path)) == 1
