"""A step runs where people run it; each place alone, and more of them: benchmarks/places.py."""

import shutil
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, run

pytestmark = pytest.mark.slow


def without_git(folder: Path) -> str:
    """Return a folder for PATH in which there is no git."""
    (folder / "bin").mkdir()
    for name in ("bash", "sh", "uname", "env"):
        (folder / "bin" / name).symlink_to(shutil.which(name) or "/bin/sh")
    return str(folder / "bin")


def test_the_first_step_runs_where_nothing_is_as_usual(store: str, tmp_path: Path) -> None:
    # All at once, since each takes a process; benchmarks/places.py tries each alone.
    without_home = ("env", "-u", "HOME", "sh", "-c", 'umask 077; exec "$@"', "sh")
    environment = {"PATH": f"{Path(sys.executable).parent}:{without_git(tmp_path)}"}
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environment |= {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = run(*without_home, sys.executable, "-m", "steps", "fetch_model", cwd=ROOT, **environment)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_temp_folder_without_room_is_named_with_both_figures(store: str, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=5m none "{small}" && exec "$@"', "sh")
    if run(*mount, "true").returncode:
        pytest.skip("needs a mount namespace")
    done = run(*mount, "python", "-m", "steps", "fetch_model", TMPDIR=str(small))
    assert done.returncode == 1
    assert f"GB are free in {small}, and 0.10 GB are needed: set TMPDIR to a folder on a larger disk" in done.stderr
