"""build_onnx_wrapper: reads the snapshot of fetch_model; writes a Python model around onnxruntime-genai.

onnxruntime-genai builds the ONNX model in a process of its own, so that its memory is given back. It follows the recipe
of the configuration, or, with onnx=auto, the first of several that keeps evaluate's fidelity gates. The step logs the
ONNX model with its wrapper (`steps/wrappers/onnx_chat.py` as code, the package `steps/wrappers/onnx` as an artifact),
loads the logged model, and has it answer a question.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow

from steps.checkpoint.checks import require_buildable
from steps.checkpoint.hub import fetch_onnx
from steps.checkpoint.manifest import MANIFEST
from steps.checkpoint.policy import end_tokens, replace_json
from steps.checkpoint.snapshot import present
from steps.checkpoint.tokenizer_check import read_json, read_settings
from steps.config.onnx import BuildOnnxWrapper, ExecutionProvider, Interface
from steps.config.schema import Config
from steps.extras.calibration import calibrate
from steps.logged_models.logged_model import logged_folder, record_model, without_bytecode
from steps.logged_models.requirements import locked
from steps.onnx_build.export import build_onnx, recipe_of, require_runnable
from steps.records.errors import StepError
from steps.records.files import describe, digest, files_below
from steps.records.step import Inputs, Outputs
from steps.records.tags import CALIBRATED, DIGEST, END_TOKENS
from steps.wrappers import onnx_chat
from steps.wrappers.onnx import model
from steps.wrappers.onnx.signatures import chat_signature, prompt_signature

BUILDER_LOG, CALIBRATION_LOG = "builder.log", "calibration.log"
CALIBRATION = "calibration.json"


def run(config: Config, inputs: Inputs) -> Outputs:
    """Build and wrap the snapshot of fetch_model, and see the model answer."""
    options = config.build_onnx_wrapper
    with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
        onnx = Path(work) / "onnx"
        if options.repo_id is None:
            snapshot = stack.enter_context(present(inputs["fetch_model"]))
            require_buildable(snapshot)  # fetch_model skips this check when it fetches for a prebuilt model
            log = Path(work) / BUILDER_LOG
            try:
                if options.calibration is not None:
                    snapshot = calibrated(snapshot, options, Path(work))
                if options.ladder is None:
                    build_onnx(snapshot, onnx, recipe_of(options), options.execution_provider, log)
                else:
                    # Imported only here: a build by a named recipe does not depend on how fidelity is measured.
                    from steps.ladder.climb import climb

                    snapshot_digest = inputs["fetch_model"].data.tags[DIGEST]
                    onnx = climb(snapshot, snapshot_digest, options, Path(work), log, reuse=config.reuse)
            finally:
                if log.is_file():
                    mlflow.log_artifact(str(log))
            mlflow.set_tag(END_TOKENS, json.dumps(end_tokens(snapshot)))
        else:
            fetch_prebuilt(onnx, options, offline=config.fetch_model.offline)
        mlflow.set_tag("onnx.sha256", digest(describe(files_below(onnx), onnx)))
        with without_bytecode():
            uri = log_wrapper(onnx, config.model.name, config.question, options)
    with logged_folder(uri) as folder:
        content = record_model(uri, folder)
        if options.execution_provider is ExecutionProvider.cpu:
            answer = ask(folder, config.question, options)
            mlflow.log_dict({"question": config.question, "answer": answer}, "answer.json")
    return Outputs({"model_uri": uri}, content)


def calibrated(snapshot: Path, options: BuildOnnxWrapper, work: Path) -> Path:
    """Return a folder in *work* with the checkpoint, its weights calibrated; record with what. Raises StepError."""
    log = work / CALIBRATION_LOG
    try:
        made = calibrate(snapshot, work / "calibrated", options, log)
    finally:
        if log.is_file():
            mlflow.log_artifact(str(log))
    mlflow.log_dict(made, CALIBRATION)
    whose = f"{made['file']} (sha256 {made['sha256']})" if made["file"] else "the model itself"
    library = f"auto-round {made['auto_round']}"
    mlflow.set_tag(CALIBRATED, f"{library}, {made['samples']} texts of {made['tokens']} tokens of {whose}")
    return work / "calibrated"


def fetch_prebuilt(output: Path, options: BuildOnnxWrapper, *, offline: bool) -> None:
    """Download a prebuilt ONNX folder from the hub to *output*, and log its manifest. Raises StepError."""
    repository, revision, folder = str(options.repo_id), str(options.revision), str(options.folder)
    manifest, snapshot = fetch_onnx(repository, revision, folder, offline=offline)
    require_runnable(snapshot / folder)
    mlflow.log_text(manifest.to_json(), MANIFEST)
    # Copied, because the cache holds links that lead out of the folder, and MLflow refuses to log those.
    # The manifest's files only: it may hold others, of other programs' downloads, that nobody has hashed.
    for path in (PurePosixPath(file.path) for file in manifest.files):
        if path.is_relative_to(folder):
            copy = output / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(snapshot / path, copy)
    if (settings := read_settings(output)) != read_json(output / "tokenizer_config.json"):
        # The wrapper reads this file alone, and the folder names tokens in special_tokens_map.json.
        replace_json(output / "tokenizer_config.json", settings)


@contextmanager
def copied_wrapper() -> Iterator[Path]:
    """Yield a folder "wrapper" with the wrapper's package, to be logged as an artifact of that name."""
    with tempfile.TemporaryDirectory() as work:
        # Without bytecode, which differs each time, and with the name that onnx_chat.py expects.
        yield shutil.copytree(
            Path(model.__file__).parent, Path(work) / "wrapper", ignore=shutil.ignore_patterns("__pycache__")
        )


def log_wrapper(folder: Path, model_name: str, question: str, options: BuildOnnxWrapper) -> str:
    """Log the ONNX model in *folder* with its wrapper on the active run; return its `models:/` URI."""
    chat = options.interface is Interface.chat
    runtime = locked("onnxruntime-genai", "onnxruntime")
    if options.execution_provider is ExecutionProvider.cuda:
        # This package installs onnxruntime-gpu, which the lock lacks. onnxruntime must not be installed beside it.
        runtime = [runtime[0].replace("onnxruntime-genai", "onnxruntime-genai-cuda")]
    with copied_wrapper() as package:
        info = mlflow.pyfunc.log_model(
            name="onnx",
            python_model=onnx_chat.__file__,
            artifacts={"onnx": str(folder), "wrapper": str(package)},
            model_config={
                "interface": options.interface.value,
                "model_name": model_name,
                "max_tokens": options.max_tokens,
            },
            signature=chat_signature() if chat else prompt_signature(),
            input_example=example_input(question, options),
            pip_requirements=[
                *runtime,
                *locked("mlflow", "tokenizers", "jinja2", "numpy", "pandas"),
            ],
        )
    return str(info.model_uri)


def example_input(question: str, options: BuildOnnxWrapper) -> dict[str, Any]:
    """Return the input with which a user of the wrapper asks *question*."""
    if options.interface is Interface.prompt:
        return {"prompt": [question]}
    return {"messages": [{"role": "user", "content": question}]}


def ask(folder: Path, question: str, options: BuildOnnxWrapper) -> str:
    """Load the wrapper in *folder* as a user would, and return its answer. Raises StepError when it gives none."""
    (response,) = mlflow.pyfunc.load_model(str(folder)).predict(example_input(question, options))
    answer = response if options.interface is Interface.prompt else response["choices"][0]["message"]["content"]
    if not isinstance(answer, str) or not answer.strip():
        msg = f"the logged ONNX wrapper answers {question!r} with {answer!r}: try another precision or block size"
        raise StepError(msg)
    return answer


if __name__ == "__main__":
    from steps.flow.entry import execute

    execute("build_onnx_wrapper")
