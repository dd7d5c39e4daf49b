"""What the result of a step depends on: facts to compare, and one hash to find the result by.

The facts are the source of the step and of every module of ours that it imports, the parts of the configuration that it
reads, the digests of its inputs, and the lock. Machine, time and user are left out.
"""

import ast
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import resolve_name
from pathlib import Path

from steps.checkpoint.manifest import needed_files
from steps.config.schema import ROOT, STEPS, Config, Harness, Source, project_path
from steps.config.values import flat_dict
from steps.records.files import describe, digest, files_below, hash_file, hash_text
from steps.records.step import Inputs
from steps.records.tags import DIGEST

FACTS = "fingerprint.json"
"""The artifact that holds the facts."""

PINNED = re.compile(r"models:/(m-\w+|[^/@]+/\d+)|runs:/[0-9a-f]{32}/.+")
"""The URIs that always name the same model; an alias, a folder or `latest` may name another one later."""

NOT_RESULTS = (
    "steps.config",
    "steps.safety",
    "steps.records.errors",
    "steps.checkpoint.hub_errors",
    "steps.checkpoint.hub_cache",
)
"""Modules that no result depends on.

Configured values are facts of their own, a finished run had no error, and the hub's cache gives files as the hub states
them, hash by hash.
"""

USERS_FILES = {
    "build_onnx_wrapper": tuple(
        f"build_onnx_wrapper.{key}" for key in ("ladder.task", "ladder.text", "calibration.file")
    ),
    "evaluate": ("evaluate.task", "evaluate.fidelity.text"),
    "register": ("register.sign_key",),
}
"""The keys that name a file of the user's, by the step that reads it: its content is a fact too."""

LADDER = "steps.ladder"
"""The room that build_onnx_wrapper imports with onnx=auto only."""


@dataclass(frozen=True)
class Fingerprint:
    """The facts: sha256 of each source by path, configuration by dotted key, digest of each input, hash of the lock."""

    step: str
    sources: dict[str, str]
    config: dict[str, object]
    inputs: dict[str, str]
    lock: str

    @property
    def value(self) -> str:
        """One sha256 over the facts, in hex."""
        return hash_text(self.to_json())

    def to_json(self) -> str:
        """Return the facts as JSON text; equal facts give equal text."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "Fingerprint":
        """Return the fingerprint that `to_json` wrote."""
        return cls(**json.loads(text))


def fingerprint(step: str, config: Config, inputs: Inputs) -> Fingerprint:
    """Return the fingerprint of *step* with *config* on the runs *inputs*."""
    flat, parts = flat_dict(config), STEPS[step].reads
    read = {key: value for key, value in flat.items() if any(f"{key}.".startswith(f"{part}.") for part in parts)}
    digests = {key: run.data.tags.get(DIGEST, run.info.run_id) for key, run in inputs.items()}
    return Fingerprint(
        step,
        sources(step, ladder=config.build_onnx_wrapper.ladder is not None),
        read,
        digests | _files(step, config) | _harness(step, config.evaluate.harness) | _calibration(step, config),
        hash_file(ROOT / "requirements.txt"),
    )


def sources(step: str, *, ladder: bool = False) -> dict[str, str]:
    """Return the sha256 of each source file of *step*, by its path in the project; see `sources_of`."""
    files = sources_of(f"steps.{step}", ladder=ladder)
    return {path.relative_to(ROOT).as_posix(): hash_file(path) for path in sorted(files)}


def differences(old: Fingerprint, new: Fingerprint) -> list[str]:
    """Return what changed from *old* to *new*, each in a few words: `block_size 32 → 128`, `x.py changed`.

    Keys that only one of them has come after those that both have, because they explain less.
    """
    changes: list[str] = []
    gone_or_new: list[str] = []
    for key in sorted(old.config.keys() | new.config.keys()):
        before, after = old.config.get(key), new.config.get(key)
        if before != after:
            some = changes if key in old.config and key in new.config else gone_or_new
            some.append(f"{key.partition('.')[2] or key} {before} → {after}")
    changes += gone_or_new
    for path in sorted(old.sources.keys() | new.sources.keys()):
        if old.sources.get(path) != new.sources.get(path):
            changes.append(f"{path} changed")
    for key in sorted(old.inputs.keys() | new.inputs.keys()):
        if old.inputs.get(key) != new.inputs.get(key):
            changes.append(f"input {_input_name(key)} changed")
    if old.lock != new.lock:
        changes.append("requirements.txt changed")
    return changes


def sources_of(module: str, *, ladder: bool = False) -> set[Path]:
    """Return the files of *module*, and of every module of ours that it imports, directly or not.

    The room LADDER counts only with *ladder*. Files that are not Python, such as a report's template, count if they are
    in the same folder. The modules are parsed, not imported. NOT_RESULTS, modules with only a docstring, and imports in
    a `__main__` block do not count.
    """
    left_out = tuple(f"{each}." for each in (NOT_RESULTS if ladder else (*NOT_RESULTS, LADDER)))
    found: set[Path] = set()
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        path = _file_of(name)
        if path is None or name in seen or f"{name}.".startswith(left_out):
            continue
        seen.add(name)
        body = _body(path)
        if body:
            found.add(path)
            found |= {file for file in path.parent.iterdir() if file.is_file() and file.suffix not in (".py", ".pyc")}
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        todo += [name.rpartition(".")[0], *_imports(body, package)]
    return found


def _file_of(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    candidates = [base.with_suffix(".py"), base / "__init__.py"]
    return next((path for path in candidates if module.startswith("steps") and path.is_file()), None)


def _body(path: Path) -> list[ast.stmt]:
    """Return the statements of the file at *path* without its docstring and its `if __name__ == "__main__"`."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        body = body[1:]
    return [each for each in body if not (isinstance(each, ast.If) and "__main__" in ast.dump(each.test))]


def _imports(body: list[ast.stmt], package: str) -> Iterator[str]:
    """Yield the names of the modules that *body*, in a module of *package*, may import."""
    for node in ast.walk(ast.Module(body, [])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name(f"{'.' * node.level}{node.module or ''}", package)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _files(step: str, config: Config) -> dict[str, str]:
    """Return the sha256 of each of the user's files that *step* reads, by the key that names it."""
    if step == "fetch_model" and config.model.source is Source.local:
        folder = project_path(str(config.model.path))
        return {"model.path": digest(describe(needed_files(folder), folder))}
    values = flat_dict(config)
    paths = {key: values.get(key) for key in USERS_FILES.get(step, ())}
    return {key: hash_file(project_path(path)) for key, path in paths.items() if path is not None}


def movable(step: str, config: Config) -> str | None:
    """Return why the result of *step* may differ although its fingerprint is the same, or None if it cannot."""
    model, onnx = config.model, config.build_onnx_wrapper
    if step == "evaluate":
        moving = [(name, uri) for name, uri in config.evaluate.candidates.items() if not PINNED.fullmatch(uri)]
        return next(
            (f"evaluate.candidates.{name}={uri} names no version: it may have moved" for name, uri in moving), None
        )
    if step == "fetch_model" and model.source is Source.hub:
        return _if_no_commit("model.revision", model.revision)
    if step == "build_onnx_wrapper" and onnx.repo_id is not None:
        return _if_no_commit("build_onnx_wrapper.revision", onnx.revision)
    if step == "register" and config.register.promote:
        return "register.promote=true: the champion may be another one by now"
    return None


def _if_no_commit(key: str, revision: str | None) -> str | None:
    return (
        None if re.fullmatch(r"[0-9a-f]{40}", str(revision)) else f"{key}={revision} is not a commit: it may have moved"
    )


def _harness(step: str, options: Harness) -> dict[str, str]:
    """Return the facts that lm-evaluation-harness adds if it is used: its version, and the user's own task files."""
    if step != "evaluate" or not options.tasks:
        return {}
    found = {"lm_eval": version("lm_eval")}
    if options.include_path is not None:
        folder = project_path(options.include_path)
        files = (path for path in files_below(folder) if path.suffix != ".pyc")  # compiled from a task's functions
        found["evaluate.harness.include_path"] = digest(describe(files, folder))
    return found


def _calibration(step: str, config: Config) -> dict[str, str]:
    """Return the version of the library that calibrates, if *step* does."""
    used = step == "build_onnx_wrapper" and config.build_onnx_wrapper.calibration is not None
    return {"auto_round": version("auto-round")} if used else {}


def _input_name(key: str) -> str:
    return {
        "fetch_model": "snapshot",
        "model.path": "snapshot",
        "evaluate.task": "task",
        "build_onnx_wrapper.ladder.task": "task",
    }.get(key, key)
