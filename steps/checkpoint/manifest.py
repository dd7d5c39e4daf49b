"""A snapshot, which is the files of a checkpoint at one revision, and the manifest that lists these files."""

import json
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import yaml
from huggingface_hub import metadata_load

from steps.records.errors import StepError
from steps.records.files import File, hash_file

MANIFEST = "snapshot/manifest.json"
FILES = "snapshot/files"
"""Where a run keeps the manifest, and the files of a small snapshot."""

CARD_AND_LICENCES = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "NOTICE", "NOTICE.md", "NOTICE.txt")
"""The model card and the licence files: they state under what terms the model may be passed on."""

SINGLE = "model.safetensors"
"""The file that holds all weights, where one does."""

INDEX = "model.safetensors.index.json"
"""The file that says which of several files holds which weight."""

TEMPLATES = "additional_chat_templates/*.jinja"
"""Where transformers keeps further chat templates, such as tool_use.jinja."""

NEEDED = (
    # Not *.safetensors: a repository may hold the same weights a second time, in its maker's own layout.
    "model*.safetensors",
    INDEX,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    TEMPLATES,
    *CARD_AND_LICENCES,
)
"""The files of a checkpoint that are used, by their paths in it. Never pickled weights, never code."""


@dataclass(frozen=True)
class Manifest:
    """What a snapshot holds and where it is from.

    `source`: `local` or `hub`. `location`: the folder as configured, or the repository. `revision`: the commit in hex,
    or for a local folder the sha256 over its files. `licence`: as the model card states it, or None.
    """

    source: str
    location: str
    revision: str
    licence: str | None
    files: tuple[File, ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(file.size for file in self.files)

    def to_json(self) -> str:
        """Return the manifest as JSON text; equal manifests give equal text."""
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Return the manifest that `to_json` wrote."""
        values = json.loads(text)
        return cls(**{**values, "files": tuple(File(**file) for file in values["files"])})


def needed_files(folder: Path) -> list[Path]:
    """Return the files of *folder* that belong to a snapshot, sorted by path."""
    found = {
        path.relative_to(folder).as_posix() for pattern in NEEDED for path in folder.glob(pattern) if path.is_file()
    }
    return [folder / path for path in sorted(without_second_layout(found))]


def without_second_layout(paths: Collection[str]) -> list[str]:
    """Return *paths*, of a checkpoint's files, without the weights that transformers does not read.

    Where there is model.safetensors it reads that, and neither an index nor what that names.
    """
    if SINGLE not in paths:
        return list(paths)
    return [path for path in paths if path == SINGLE or not (path == INDEX or path.endswith(".safetensors"))]


FOREIGN = {
    "adapter_config.json": "it is a LoRA adapter: merge it into its base with merge_and_unload(), and save that",
    "*.gguf": "it holds GGUF, which llama.cpp runs: choose the checkpoint in safetensors that it was made from",
    "genai_config.json": "it is ONNX already: name its repository with -P onnx=prebuilt, and its checkpoint as model",
    "*.onnx": "it holds ONNX: choose the checkpoint in safetensors that it was made from",
    "*.bin": "it holds weights in *.bin: load them and save_pretrained(safe_serialization=True)",
    "*.pt": "it holds weights as a pickle: load them and save_pretrained(safe_serialization=True)",
    "*.pth": "it holds weights as a pickle: load them and save_pretrained(safe_serialization=True)",
    "*.safetensors": "its safetensors are named otherwise: load them and save_pretrained",
}
"""By file pattern: what a folder or repository without model*.safetensors holds instead, and the remedy."""


def instead_of_weights(paths: Iterable[str], below: str = "name that folder") -> str:
    """Return what a folder or repository without model*.safetensors holds instead, by its *paths*, and the remedy.

    *below* is the remedy where the checkpoint lies in a folder below it.
    """
    found = [PurePosixPath(path) for path in paths]
    for pattern, remedy in FOREIGN.items():
        if any(len(path.parts) == 1 and path.match(pattern) for path in found):
            return remedy
    folders = sorted({str(path.parent) for path in found if path.name == "config.json" and len(path.parts) > 1})
    if folders:
        return f"a checkpoint lies below it, in {' and in '.join(folders[:3])}: {below}"
    return "save the checkpoint with save_pretrained(safe_serialization=True)"


def require_one_layout(folder: Path) -> None:
    """Raise StepError where *folder* holds weights in one file, and in several by an index.

    One of the two may be the rest of an earlier save. A commit on a hub is what its author means.
    """
    if all((folder / name).is_file() for name in (SINGLE, INDEX)) and len(list(folder.glob("model*.safetensors"))) > 1:
        fact = (
            f"{folder} holds {SINGLE} and {INDEX}: transformers reads the first, and the index may name other weights"
        )
        msg = f"{fact}; remove {SINGLE}, or the index with its files"
        raise StepError(msg)


def require_weights(folder: Path) -> None:
    """Raise StepError unless *folder* holds model.safetensors, or all that its index names, and no link to nowhere."""
    if not folder.is_dir():
        msg = f"{folder} is no folder: name the folder that holds config.json and model*.safetensors"
        raise StepError(msg)
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.exists() and any(path.match(pattern) for pattern in NEEDED):
            fact = f"{path} is a link to {path.readlink()}, which is not there"
            msg = f"{fact}: copy the checkpoint with what its links lead to (cp -rL)"
            raise StepError(msg)
    if not any(path.suffix == ".safetensors" for path in needed_files(folder)):
        near = [*folder.glob("*"), *folder.glob("*/config.json"), *folder.glob("*/*/config.json")]
        remedy = instead_of_weights(path.relative_to(folder).as_posix() for path in near)
        msg = f"{folder} holds no model*.safetensors: {remedy}"
        raise StepError(msg)
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.is_file():
        return
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        msg = f"{index} is not an index of safetensors ({error!r}): save the checkpoint again"
        raise StepError(msg) from error
    if absent := sorted(shards - {path.name for path in needed_files(folder)}):
        msg = f"{index} names {absent[0]}, which is not among the model*.safetensors beside it: complete the checkpoint"
        raise StepError(msg)


def licence_of(folder: Path) -> str | None:
    """Return the licence that the model card in *folder* states, or None where it states none that can be read."""
    try:
        licence = (metadata_load(folder / "README.md") or {}).get("license")
    except (FileNotFoundError, ValueError, yaml.YAMLError):
        return None
    return licence if isinstance(licence, str) else None


def verify(manifest: Manifest, folder: Path) -> None:
    """Raise StepError unless every file of *manifest* lies in *folder* with its size and sha256."""
    for file in manifest.files:
        path = folder / file.path
        if not path.is_file():
            msg = f"{path} is missing: run fetch_model again"
            raise StepError(msg)
        size = path.stat().st_size
        if size != file.size:
            msg = f"{path} has {size} bytes, not {file.size}: run fetch_model again"
            raise StepError(msg)
        if (found := hash_file(path)) != file.sha256:
            msg = f"{path} has sha256 {found}, not {file.sha256}: run fetch_model again"
            raise StepError(msg)
