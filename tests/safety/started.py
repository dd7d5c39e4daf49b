"""The programs of tests/programs, started beside the test."""

import os
import subprocess
import sys

from tests.conftest import PROGRAMS, ROOT


def start(name: str, *arguments: str) -> "subprocess.Popen[str]":
    """Start the program *name*, which prints to us."""
    command = [sys.executable, str(PROGRAMS / name), *arguments]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env)


def line_of(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
