"""The server against its own OpenAPI description."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from mlflow.exceptions import MlflowException

from steps.serving.openapi import CHAT
from steps.wrappers.onnx.messages import ROLES, read_messages
from steps.wrappers.onnx.tools.formats import FORMATS
from steps.wrappers.onnx.tools.template import ToolSupport

from .conftest import Server

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_generated_requests_get_what_the_description_says(server: Server, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
    options = ["--max-examples=15", f"--checks={CHECKS}", "--phases=examples,fuzzing", "--seed=1", "--no-color"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert httpx.get(f"{server.url}/health", timeout=600).status_code == 200


SCHEMA = CHAT["openapi_extra"]["requestBody"]["content"]["application/json"]["schema"]
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
OF_OPENAI = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": None}
"""What a message of OpenAI's client has when it is sent back as it came."""

PARTS = [{"type": "text", "text": "x"}]
SAID = {"role": "assistant", "content": "x"}


@pytest.mark.parametrize(
    ("message", "taken"),
    [
        *(({"role": role, "content": "x", "tool_call_id": None}, role != "tool") for role in ROLES),
        *(({"role": role, "content": PARTS, "name": "n"}, role != "tool") for role in ROLES),
        *(({"role": role, "content": ""}, role not in ("user", "tool")) for role in ROLES),
        *(({"role": role}, False) for role in ROLES),
        ({"role": "function", "content": "x"}, False),
        ({"content": "x"}, False),
        ({**SAID, **OF_OPENAI}, True),
        ({**SAID, "tool_calls": []}, True),
        ({**SAID, "tool_calls": 0}, False),
        ({**SAID, "annotations": [{"type": "url_citation"}]}, False),
        ({**SAID, "refusal": "No."}, False),
        ({**SAID, "reasoning_content": None}, True),
        ({**SAID, "content": None}, False),
        ({**SAID, **OF_OPENAI, "content": None, "tool_calls": [CALL]}, True),
        ({**SAID, "tool_calls": [CALL], "name": None}, True),
        ({**SAID, "tool_calls": [{**CALL, "id": None}]}, False),
        ({"role": "user", "content": "x", "tool_calls": []}, False),
        ({"role": "user", "content": []}, False),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, False),
        ({"role": "tool", "content": "", "tool_call_id": "1", "name": "f"}, True),
        ({"role": "tool", "content": PARTS, "tool_call_id": ""}, False),
    ],
)
def test_the_description_and_the_server_agree_on_messages(message: dict[str, Any], taken: bool) -> None:
    def is_taken() -> bool:
        try:
            read_messages({"messages": [message]}, ToolSupport(FORMATS[0], in_system=False, has_calls=True))
        except MlflowException:
            return False
        return True

    described = jsonschema.Draft202012Validator(SCHEMA).is_valid({"messages": [message]})
    assert (is_taken(), described) == (taken, taken)
