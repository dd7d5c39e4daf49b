"""What a node of a Ray cluster does for a trial. It is sent there by value, so it uses the standard library only."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path


def run_command(project: bytes, commit: str, command: str, variables: dict[str, str]) -> int:
    """Run the shell *command* with *variables* in a fresh checkout of *commit*; return its exit code.

    *project* is a clone as a tar file. Raises RuntimeError unless it is exactly at *commit*.
    """
    with tempfile.TemporaryDirectory(prefix="slm-project-", ignore_cleanup_errors=True) as folder:
        with tarfile.open(fileobj=io.BytesIO(project)) as tar:
            tar.extractall(folder, filter="data")
        found = [_git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")]
        if found != [commit, ""]:
            msg = f"the checkout on this node is at {found[0]} with changes {found[1]!r}, not at {commit}"
            raise RuntimeError(msg)
        # Ray sets one thread for its workers; a trial uses the sweep's own setting.
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | variables
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        # Ray kills a worker's children with SIGKILL. With `exit` the shell stays as the child, and the chain below it
        # survives long enough to notice that the worker is gone and to close its run.
        shell = ["bash", "-c", f"{command}\nexit $?"]
        process = subprocess.Popen(shell, cwd=folder, env=environment, start_new_session=True)
        try:
            return process.wait()
        finally:
            if process.poll() is None:  # interrupted: SIGTERM lets the chain close its run and end its step
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()


def _git(folder: str, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
