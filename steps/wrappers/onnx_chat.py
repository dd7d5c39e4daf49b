"""The ONNX wrapper as MLflow loads it (models-from-code): the package of code lies beside this file.

In a logged model that is artifacts/wrapper, in this project the folder onnx. The package gets a name of its own for
every folder and content, so two versions of a model that are loaded in one process each run their own code.
"""

import hashlib
import importlib.util
import sys
from pathlib import Path

import mlflow

logged = Path(__file__).with_name("artifacts") / "wrapper"
folder = logged if logged.is_dir() else Path(__file__).with_name("onnx")
files = sorted(folder.rglob("*.py"))
content = hashlib.sha256(b"".join([str(folder.resolve()).encode(), *(file.read_bytes() for file in files)]))
name = f"onnx_wrapper_{content.hexdigest()[:16]}"
spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
assert spec
# The package's __init__.py is empty, so this module is complete before it runs, and two threads may load it at once.
sys.modules.setdefault(name, importlib.util.module_from_spec(spec))
# Compiled code would be left in the logged model, and be run by whoever loads it next.
before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
try:
    mlflow.models.set_model(importlib.import_module(f"{name}.model").OnnxChatModel())
finally:
    sys.dont_write_bytecode = before
