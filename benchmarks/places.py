"""Runs the flow's first step in the places where people run it, and prints a table: how each ended, and its line.

    sudo .venv/bin/python -m benchmarks.places [NAME ...]

Linux only. Root is needed for other users, mounts, namespaces and memory limits; each place has a store of its own.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEP = ("python", "-m", "steps", "fetch_model")
CAPABILITY = "+dac_read_search"  # the Python of root's own home stays readable, as an installed one is
ID = ("--reuid=54321", "--regid=54321", "--clear-groups", f"--inh-caps={CAPABILITY}", f"--ambient-caps={CAPABILITY}")
SIX = "ip link set lo up; ip addr del 127.0.0.1/8 dev lo"
STRANGER = ("setpriv", *ID)


@dataclass
class Place:
    """Where the step runs: what comes before its command, its environment, and its checkout."""

    before: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    checkout: Callable[[Path], Path] = lambda _work: ROOT


def clone(name: str, *arguments: str) -> Callable[[Path], Path]:
    """Return what makes a clone of this checkout in a folder *name*, with git's *arguments*."""

    def make(work: Path) -> Path:
        subprocess.run(["git", "clone", "-q", *arguments, f"file://{ROOT}", str(work / name)], check=True)
        return work / name

    return make


def worktree(work: Path) -> Path:
    """Return a git worktree of a clone."""
    whole = clone("whole")(work)
    subprocess.run(["git", "-C", str(whole), "worktree", "add", "-q", str(work / "tree")], check=True)
    return work / "tree"


def detached(work: Path) -> Path:
    """Return a clone whose HEAD is no branch."""
    made = clone("detached")(work)
    subprocess.run(["git", "-C", str(made), "checkout", "-q", "--detach"], check=True)
    return made


def of_another(work: Path) -> Path:
    """Return a clone that belongs to another user."""
    made = clone("theirs")(work)
    subprocess.run(["chown", "-R", "54322", str(made)], check=True)
    return made


def limited(megabytes: int) -> tuple[str, ...]:
    """Return what runs a command in a cgroup with at most *megabytes* of memory, of version 2 or 1."""
    two = Path("/sys/fs/cgroup/cgroup.controllers").exists()
    group = Path("/sys/fs/cgroup") / ("" if two else "memory") / f"slm-places-{megabytes}"
    if not group.parent.is_dir() or os.geteuid():
        return ()
    group.mkdir(exist_ok=True)
    (group / ("memory.max" if two else "memory.limit_in_bytes")).write_text(str(megabytes << 20))
    return ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh")


def mounted(options: str, folder: str) -> tuple[str, ...]:
    """Return what runs a command where *folder* is mounted with *options*, for that command only."""
    return ("unshare", "--mount", "sh", "-c", f'mount {options} "{folder}" && exec "$@"', "sh")


def no_git(work: Path) -> str:
    """Return a PATH without git."""
    for name in ("bash", "sh", "env", "uname"):
        (work / name).symlink_to(shutil.which(name) or "/bin/sh")
    return f"{Path(sys.executable).parent}:{work}"


def places(work: Path) -> dict[str, Place]:
    """Return every place by its name; *work* is a folder for what it needs."""
    readonly = mounted("--bind -o ro", f'{ROOT}" "{ROOT}')
    return {
        "as usual": Place(),
        "a user id without a passwd entry": Place(STRANGER, {"HOME": str(work)}),
        "HOME not writable": Place(STRANGER, {"HOME": "/root"}),
        "no HOME": Place(("env", "-u", "HOME")),
        "a folder with spaces and umlauts": Place(checkout=clone("mit Leerzeichen und Ü")),
        "a read-only checkout": Place(readonly),
        "TMPDIR with 5 MB": Place(mounted("-t tmpfs -o size=5m none", f"{work}/small"), {"TMPDIR": f"{work}/small"}),
        "TMPDIR on another device": Place(
            mounted("-t tmpfs -o size=2g none", f"{work}/small"), {"TMPDIR": f"{work}/small"}
        ),
        "TMPDIR does not exist": Place(environment={"TMPDIR": f"{work}/nowhere"}),
        "no git on PATH": Place(environment={"PATH": no_git(work)}),
        "a checkout owned by another user": Place(checkout=of_another),
        "a shallow clone": Place(checkout=clone("shallow", "--depth", "1")),
        "a detached HEAD": Place(checkout=detached),
        "a git worktree": Place(checkout=worktree),
        "locale C": Place(environment={"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        "umask 077": Place(("sh", "-c", 'umask 077; exec "$@"', "sh")),
        "1 CPU": Place(("taskset", "-c", "0")),
        "300 MB of memory": Place(limited(300)),
        "700 MB of memory": Place(limited(700)),
        "a proxy in the environment": Place(
            environment={"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
        ),
        "IPv6 only on loopback": Place(("unshare", "--net", "sh", "-c", f'{SIX}; exec "$@"', "sh")),
    }


def run(name: str) -> str:
    """Return the row of the table for the place *name*."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        work.chmod(0o777)
        (work / "small").mkdir(mode=0o777)
        place = places(work)[name]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        store = {"PATH": path, "MLFLOW_TRACKING_URI": f"sqlite:///{work}/store/m.db"}
        (work / "store").mkdir(mode=0o777)
        (work / "store").chmod(0o777)
        # Beside the checkout, as `mlflow run` is typed: the artifacts of a new database go to the folder it is made in.
        environment = os.environ | store | {"GIT_CONFIG_COUNT": "0"} | place.environment
        began = time.monotonic()
        out = subprocess.PIPE
        environment["PYTHONPATH"] = str(place.checkout(work))
        done = subprocess.run(
            [*place.before, *STEP], cwd=work / "store", env=environment, stdout=out, stderr=out, text=True, check=False
        )
    trace = "trace" if "Traceback" in done.stderr else ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("fetch_model: ")]
    said = (lines or (done.stderr.splitlines()[-1:] if done.returncode else [])) or [""]
    return f"| {name} | {done.returncode} {trace} | {time.monotonic() - began:.0f} | {said[0][:200]} |"


if __name__ == "__main__":
    print(f"{datetime.now(UTC):%Y-%m-%d}\n\n| place | exit | seconds | line |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as nothing:
        names = sys.argv[1:] or list(places(Path(nothing)))
    for each in names:
        print(run(each), flush=True)
