"""The server against its own OpenAPI description."""

import subprocess
import sys
from pathlib import Path

import httpx

from .conftest import Server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_generated_requests_get_what_the_description_says(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    options = ["--max-examples=15", f"--checks={CHECKS}", "--phases=examples,fuzzing", "--seed=1", "--no-color"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert httpx.get(f"{server.url}/health", timeout=600).status_code == 200
