"""The alternative to the engine's process: the same scheduler in a thread of the server. MLflow loads this as code."""

import json
import os
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow

from steps.wrappers import onnx_chat, onnx_engine


class EngineThread:
    """What stands in for subprocess.Popen."""

    def __init__(self, command: list[str], **_options: Any) -> None:  # noqa: ANN401
        _python, _option, _script, descriptor, folder, threads, limits, _parent = command
        connection = Connection(os.dup(int(descriptor)))
        arguments = (connection, Path(folder), int(threads), json.loads(limits), os.getppid())
        threading.Thread(target=onnx_engine.serve, args=arguments, daemon=True).start()

    def poll(self) -> None:
        """Return None: it runs."""

    def kill(self) -> None:
        """End with the server."""

    def wait(self) -> int:
        """Return how it ended: well."""
        return 0


vars(onnx_chat)["subprocess"] = SimpleNamespace(Popen=EngineThread, DEVNULL=None)
mlflow.models.set_model(onnx_chat.OnnxChatModel())
