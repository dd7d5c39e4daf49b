"""build_onnx_wrapper: reads the snapshot of fetch_model; writes a Python model around onnxruntime-genai.

onnxruntime-genai's builder makes the ONNX model in a process of its own, so that its memory is given back. The
wrapper is logged with it: `steps/wrappers/onnx_chat.py` as code, the package `steps/wrappers/onnx` as an artifact. Then
it is loaded to answer a question.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import mlflow

from steps.flow.architecture import require_known_architecture
from steps.flow.command_line import execute
from steps.flow.errors import StepError
from steps.flow.files import describe, digest, files_below
from steps.flow.hub import fetch_onnx
from steps.flow.logged_model import logged_folder, record_model, without_bytecode
from steps.flow.manifest import MANIFEST
from steps.flow.requirements import locked
from steps.flow.schema import BuildOnnxWrapper, Config, ExecutionProvider, Interface
from steps.flow.snapshot import present
from steps.flow.tracking import set_output, step_run
from steps.wrappers import onnx_chat
from steps.wrappers.onnx import model
from steps.wrappers.onnx.signatures import chat_signature, prompt_signature

BUILDER_LOG = "builder.log"

WINDOWED = {"mistral": 4096, "phi3": None}
"""Model types whose every layer has the sliding window, with its size in transformers when config.json states none."""


def build_onnx(snapshot: Path, output: Path, options: BuildOnnxWrapper, log: Path) -> None:
    """Write the ONNX model of the checkpoint in *snapshot* to *output*, with genai_config.json and tokenizer.

    All that the builder says goes to the file *log*. Raises StepError with its last line when it fails.
    """
    with tempfile.TemporaryDirectory() as work:
        source = mend_window(snapshot, Path(work) / "source")
        command = [
            sys.executable,
            "-m",
            "onnxruntime_genai.models.builder",
            "-i",
            str(source),
            "-o",
            str(output),
        ]
        command += [
            "-p",
            options.precision.value,
            "-e",
            options.execution_provider.value,
            "-c",
            str(Path(work) / "cache"),
        ]
        command += ["--extra_options", *_extra_options(options)]
        done = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}, check=False
        )
    log.write_text(f"{' '.join(command)}\n\n{done.stdout}\n{done.stderr}", encoding="utf-8")
    if done.returncode != 0 or not (output / "model.onnx").is_file():
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        msg = f"onnxruntime-genai's builder failed: {lines[-1]} (all it said is in the run's {log.name})"
        raise StepError(msg)


def fetch_prebuilt(output: Path, options: BuildOnnxWrapper, *, offline: bool) -> None:
    """Write the ONNX folder that somebody else built, from the hub, to *output*; log its manifest. Raises StepError."""
    repository, revision, folder = str(options.repo_id), str(options.revision), str(options.folder)
    manifest, snapshot = fetch_onnx(repository, revision, folder, offline=offline)
    require_runnable(snapshot / folder)
    mlflow.log_text(manifest.to_json(), MANIFEST)
    # The cache holds links, out of the folder: MLflow refuses to log those.
    shutil.copytree(snapshot / folder, output)


def require_runnable(folder: Path) -> None:
    """Raise StepError unless *folder* holds what the wrapper reads: settings, the model they name, tokenizer."""
    settings = folder / "genai_config.json"
    needed = [settings.name, "tokenizer.json", "tokenizer_config.json"]
    if settings.is_file():
        try:
            needed.append(str(json.loads(settings.read_text())["model"]["decoder"]["filename"]))
        except (ValueError, KeyError, TypeError) as error:
            msg = f"{settings} names no model ({error!r}): choose a folder that onnxruntime-genai's builder wrote"
            raise StepError(msg) from error
    for name in needed:
        if not (folder / name).is_file():
            msg = f"{folder} lacks {name}: choose a folder that onnxruntime-genai's builder wrote"
            raise StepError(msg)


def mend_window(snapshot: Path, folder: Path) -> Path:
    """Return *folder*, made with links to *snapshot*'s files and a config.json from which the builder exports right.

    The builder learns from `layer_types` which layers have a sliding window. Where every layer has it, config.json does
    not say so, and the export would attend to everything, without a word; so it is written out.
    """
    folder.mkdir(parents=True)
    for path in snapshot.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    architecture = json.loads((snapshot / "config.json").read_text())
    family = architecture.get("model_type")
    window = architecture.get("sliding_window", WINDOWED.get(family))
    if family in WINDOWED and window is not None and "layer_types" not in architecture:
        architecture |= {
            "sliding_window": window,
            "layer_types": ["sliding_attention"] * architecture["num_hidden_layers"],
        }
        (folder / "config.json").unlink()
        (folder / "config.json").write_text(json.dumps(architecture, indent=2))
    return folder


def _extra_options(options: BuildOnnxWrapper) -> list[str]:
    # A cache of the window's size alone crashes past twice the window; the mask is in the attention operator anyway.
    extra = ["hf_token=false", "windowed_kv_cache=false"]
    if options.precision.value in ("int4", "int8"):
        extra += [f"block_size={options.block_size}", f"accuracy_level={options.accuracy_level}"]
    return extra


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
        # It brings onnxruntime-gpu, which the lock lacks; onnxruntime itself must not lie beside that.
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


def main(config: Config, _overrides: list[str]) -> None:
    """Build and wrap the snapshot of `fetch_run_id`, and see it answer."""
    with step_run("build_onnx_wrapper", config) as step:
        options = config.build_onnx_wrapper
        with tempfile.TemporaryDirectory() as work, ExitStack() as stack:
            onnx = Path(work) / "onnx"
            if options.repo_id is None:
                _manifest, snapshot = stack.enter_context(present(step.inputs["fetch_run_id"]))
                require_known_architecture(snapshot)
                try:
                    build_onnx(snapshot, onnx, options, Path(work) / BUILDER_LOG)
                finally:
                    mlflow.log_artifact(f"{work}/{BUILDER_LOG}")
            else:
                fetch_prebuilt(onnx, options, offline=config.fetch_model.offline)
            mlflow.set_tag("onnx.sha256", digest(describe(files_below(onnx), onnx)))
            with without_bytecode():
                uri = log_wrapper(onnx, config.model.name, config.question, options)
        with logged_folder(uri) as folder:
            record_model(uri, folder)
            if options.execution_provider is ExecutionProvider.cpu:
                mlflow.log_dict(
                    {"question": config.question, "answer": ask(folder, config.question, options)},
                    "answer.json",
                )
        set_output("model_uri", uri)


if __name__ == "__main__":
    execute("build_onnx_wrapper", main)
