"""The types of the configuration. Its values stand in conf/, each once."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf

from steps.flow.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
"""The project's folder: the clone that MLflow made, or the user's own."""

STEPS = ("fetch_model", "build_pipeline_wrapper", "build_onnx_wrapper", "evaluate", "register")
"""The steps in the order of the chain. Each is an entry point, a module, and a section of the configuration."""

INPUTS = {
    "fetch_run_id": "fetch_model",
    "pipeline_run_id": "build_pipeline_wrapper",
    "onnx_run_id": "build_onnx_wrapper",
    "evaluate_run_id": "evaluate",
}
"""For each key that names a run to build on: the step that makes such runs. MLproject says which step needs which."""


def inputs_of(step: str) -> list[str]:
    """Return the keys of the runs that *step* builds on: what MLproject declares for it, less `overrides`."""
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))["entry_points"]
    return [key for key in entry_points[step]["parameters"] if key in INPUTS]


READS = {
    "fetch_model": ("model", "fetch_model"),
    "build_pipeline_wrapper": ("build_pipeline_wrapper", "question"),
    "build_onnx_wrapper": ("build_onnx_wrapper", "fetch_model.offline", "model.name", "question"),
    "evaluate": ("evaluate", "model.name", "seed"),
    "register": ("register", "question"),
}
"""The parts of the configuration that a step reads, and so depends on; nothing else of it may change its result."""

CANDIDATES = {"pipeline": "pipeline_run_id", "onnx": "onnx_run_id"}
"""The models that are measured against each other, and the keys that name the runs which built them."""

REFERENCE, BUILD = "pipeline", "onnx"
"""The candidate that the others are compared with, and the one that is put to the test."""


class Source(Enum):
    """Where a snapshot comes from."""

    local = "local"
    hub = "hub"


class Interface(Enum):
    """What the ONNX wrapper takes and gives: Chat Completions, or a prompt string and a string."""

    chat = "chat"
    prompt = "prompt"


class Precision(Enum):
    """The precisions that onnxruntime-genai's builder writes."""

    int4 = "int4"
    int8 = "int8"
    fp16 = "fp16"
    fp32 = "fp32"


class ExecutionProvider(Enum):
    """Where the ONNX model is to run."""

    cpu = "cpu"
    cuda = "cuda"


@dataclass
class Model:
    """The model to fetch: a folder (`path`), or a repository of the hub at a commit (`repo_id`, `revision`)."""

    name: str
    source: Source
    path: str | None
    repo_id: str | None
    revision: str | None


@dataclass
class FetchModel:
    """`log_files_mb`: a snapshot up to this size (MB) is logged whole; a larger one travels by its manifest."""

    log_files_mb: float
    offline: bool


@dataclass
class BuildPipelineWrapper:
    """`max_new_tokens`: the length of an answer when the request names none. `dtype`: torch's, or `auto`."""

    max_new_tokens: int
    dtype: str


@dataclass
class BuildOnnxWrapper:
    """What onnxruntime-genai's builder is asked for, and how the wrapper answers.

    `repo_id`, `revision`, `folder` name a ready ONNX folder in a repository; then nothing is built.
    """

    interface: Interface
    precision: Precision
    execution_provider: ExecutionProvider
    block_size: int
    accuracy_level: int
    max_tokens: int
    repo_id: str | None
    revision: str | None
    folder: str | None


@dataclass
class Evaluate:
    """`task`: JSON Lines of questions, relative to the project; `limit`: ask only the first so many.

    `scorer`: for every question, instead of what the task says of each. `gates`: by name, the fields of a
    `steps.evaluation.gates.Gate`.
    """

    task: str
    scorer: str | None
    limit: int | None
    max_tokens: int
    gates: dict[str, Any]


@dataclass
class Register:
    """`name`: of the registered model. `promote`: make the new version champion though there is one."""

    name: str
    promote: bool


@dataclass
class Sweep:
    """`objective`: the metric that makes a trial the best; `direction`: `maximize` or `minimize`.

    `jobs`: trials at a time. `register`: register the best, which passed its gates; otherwise none is.
    """

    objective: str
    direction: str
    jobs: int
    register: bool


@dataclass
class Config:
    """The whole configuration, resolved."""

    model: Model
    fetch_model: FetchModel
    build_pipeline_wrapper: BuildPipelineWrapper
    build_onnx_wrapper: BuildOnnxWrapper
    evaluate: Evaluate
    register: Register
    sweep: Sweep
    question: str
    seed: int
    steps: list[str]
    reuse: bool
    plan: bool
    fetch_run_id: str | None
    pipeline_run_id: str | None
    onnx_run_id: str | None
    evaluate_run_id: str | None


def to_config(composed: DictConfig) -> Config:
    """Return *composed* as a checked Config. Raises ConfigError, naming key and value."""
    # Unresolved: an interpolation of a missing value would hide which key it is.
    missing = sorted(_missing_keys(OmegaConf.to_container(composed, resolve=False)))
    if missing:
        msg = f"no value for {', '.join(missing)}: give it with -P {missing[0]}=..."
        raise ConfigError(msg)
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    check(config)
    return config


def holds_text(key: str) -> bool:
    """Return whether the dotted *key* is declared as a string."""
    kind: object = Config
    for part in key.split("."):
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    return kind in (str, str | None)


def _missing_keys(node: object, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _missing_keys(value, f"{prefix}.{key}" if prefix else str(key))
    elif node == MISSING:
        yield prefix


def to_dict(config: Config) -> dict[str, Any]:
    """Return *config* as nested dictionaries of plain values."""
    return asdict(config, dict_factory=lambda items: {k: v.value if isinstance(v, Enum) else v for k, v in items})


def flat_dict(config: Config) -> dict[str, Any]:
    """Return *config* as plain values by dotted key."""
    return dict(_flatten(to_dict(config)))


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def to_yaml(config: Config) -> str:
    """Return *config* as YAML text."""
    # Not OmegaConf's: text such as `${` is resolved already, and would be taken for an interpolation again.
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def project_path(path: str | Path) -> Path:
    """Return *path* as an absolute path; a relative one is relative to the project."""
    return ROOT / Path(path).expanduser()


def check(config: Config) -> None:
    """Raise ConfigError for the first value that is of the right type and still cannot be used."""
    model, onnx = config.model, config.build_onnx_wrapper
    unknown = [step for step in config.steps if step not in STEPS]
    _require(bool(config.steps) and not unknown, "steps", config.steps, f"some of {', '.join(STEPS)}")
    if model.source is Source.local:
        _require(model.path is not None, "model.path", model.path, "the folder of a checkpoint")
        folder = project_path(str(model.path))
        _require(
            (folder / "config.json").is_file(),
            "model.path",
            model.path,
            f"a folder with a config.json ({folder})",
        )
    else:
        _require(
            bool(model.repo_id and model.revision),
            "model.repo_id",
            model.repo_id,
            "a repository and a revision",
        )
    _require(bool(config.question.strip()), "question", repr(config.question), "a question to ask each wrapper")
    task = project_path(config.evaluate.task)
    _require(task.is_file(), "evaluate.task", config.evaluate.task, f"an existing file ({task})")
    _require(
        onnx.block_size in (16, 32, 64, 128, 256),
        "build_onnx_wrapper.block_size",
        onnx.block_size,
        "16, 32, 64, 128 or 256",
    )
    _require(onnx.accuracy_level in range(5), "build_onnx_wrapper.accuracy_level", onnx.accuracy_level, "0 to 4")
    for key, value in {
        "build_pipeline_wrapper.max_new_tokens": config.build_pipeline_wrapper.max_new_tokens,
        "build_onnx_wrapper.max_tokens": onnx.max_tokens,
        "evaluate.max_tokens": config.evaluate.max_tokens,
        "evaluate.limit": config.evaluate.limit,
        "sweep.jobs": config.sweep.jobs,
    }.items():
        _require(value is None or value >= 1, key, value, "at least 1")
    name = config.register.name
    _require(
        re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name) is not None,
        "register.name",
        name,
        "1 to 100 of A-Z a-z 0-9 . _ -",
    )
    _require(
        config.sweep.direction in ("maximize", "minimize"),
        "sweep.direction",
        config.sweep.direction,
        "maximize or minimize",
    )


def _require(condition: bool, key: str, value: object, expected: str) -> None:
    if not condition:
        msg = f"{key}={value} cannot be used: expected {expected}"
        raise ConfigError(msg)
