"""What an export's folder holds."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities.model_registry import ModelVersion
from packaging.requirements import Requirement

from steps.exporting.checksums import write_sums
from steps.exporting.readme import readme
from steps.exporting.version import uri_of
from steps.records.errors import StepError
from steps.records.files import File, hash_file

MODEL = "model"
LOGGED = "artifacts/onnx/"
"""Where the logged model of an ONNX version keeps what onnxruntime-genai reads."""

EXAMPLE = Path(__file__).with_name("example.py")
"""A program, not a module: it answers as soon as it runs."""

PROVENANCE = "provenance.json"
RUNTIME = ("onnxruntime-genai", "onnxruntime-genai-cuda", "onnxruntime", "tokenizers")
"""What the example imports, and what that runs on."""


def model_files(stated: Sequence[File]) -> dict[str, File]:
    """Return the files that onnxruntime-genai reads, by their paths in the logged model whose files are *stated*.

    Each has the path that it gets in an export.
    """
    inside = (file for file in stated if file.path.startswith(LOGGED))
    return {file.path: File(f"{MODEL}/{file.path.removeprefix(LOGGED)}", file.size, file.sha256) for file in inside}


def requirements_of(logged: Path) -> list[str]:
    """Return what the example needs of the requirements of the model in *logged*, as `name==version`."""
    lines = (logged / "requirements.txt").read_text(encoding="utf-8").split()
    return [line for line in lines if Requirement(line).name in RUNTIME]


def write_folder(
    folder: Path, version: ModelVersion, logged: Path, files: Mapping[str, File], others: Mapping[str, bytes], ask: str
) -> tuple[File, ...]:
    """Fill the new *folder* with the export of *version*; return its files, without SHA256SUMS.

    *files*: what `model_files` returned; each is copied from *logged* and hashed again. *others*: the optional files,
    by path. *ask*: the question in the README. Raises StepError if a copy is not what was registered.
    """
    folder.mkdir()
    for source, file in files.items():
        copy = folder / file.path
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(logged / source, copy)
        if hash_file(copy) != file.sha256:
            msg = f"the copy of {source} of {uri_of(version)} differs from what was registered: export it again"
            raise StepError(msg)
    for path, data in others.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(data)
    shutil.copyfile(EXAMPLE, folder / EXAMPLE.name)
    texts = {
        "README.md": readme(version.name, str(version.version), version.tags, version.description or "", ask, others),
        "requirements.txt": "".join(f"{line}\n" for line in requirements_of(logged)),
        PROVENANCE: provenance(version),
    }
    for path, text in texts.items():
        (folder / path).write_text(text, encoding="utf-8")
    return write_sums(folder)


def provenance(version: ModelVersion) -> str:
    """Return *version* and its tags as JSON text."""
    return json.dumps({"model": uri_of(version), "tags": dict(version.tags)}, indent=2, sort_keys=True) + "\n"
