"""What a node of a Ray cluster does for a trial. Travels there by value, and so uses the standard library alone."""

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

    *project* is a clone as a tar file. Raises RuntimeError when it is not at *commit*, to the letter.
    """
    with tempfile.TemporaryDirectory(prefix="slm-project-", ignore_cleanup_errors=True) as folder:
        with tarfile.open(fileobj=io.BytesIO(project)) as tar:
            tar.extractall(folder, filter="data")
        found = [_git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")]
        if found != [commit, ""]:
            msg = f"the checkout on this node is at {found[0]} with changes {found[1]!r}, not at {commit}"
            raise RuntimeError(msg)
        # Ray tells its workers to use one thread each: a trial uses what the sweep was told to use.
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"} | variables
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
        # Ray ends a worker's children with SIGKILL. That is the shell, which therefore stays: the chain below it sees
        # that the worker is gone, and closes its run first.
        shell = ["bash", "-c", f"{command}\nexit $?"]
        process = subprocess.Popen(shell, cwd=folder, env=environment, start_new_session=True)
        try:
            return process.wait()
        finally:
            if process.poll() is None:  # interrupted: the chain closes its run and ends its step by itself
                os.killpg(process.pid, signal.SIGTERM)
                process.wait()


def _git(folder: str, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
