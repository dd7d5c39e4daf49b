"""The types of the configuration. Its values stand in conf/, each once."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

import yaml

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
    """Return the keys of the runs that *step* builds on: what MLproject declares for it, less `overrides`.

    None for what is no entry point of its own, such as a rollback.
    """
    entry_points = yaml.safe_load((ROOT / "MLproject").read_text(encoding="utf-8"))["entry_points"]
    return [key for key in entry_points.get(step, {}).get("parameters", {}) if key in INPUTS]


READS = {
    "fetch_model": ("model", "fetch_model", "build_onnx_wrapper.repo_id"),
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
class Fidelity:
    """`text`: a text file to compare probabilities on, besides the task; `context`: the most tokens at a time."""

    text: str | None
    context: int


@dataclass
class Cost:
    """What is timed: every prompt length (tokens) with every batch (prompts in a call), `repeats` times.

    `new_tokens`: the most that are generated for each prompt.
    """

    prompt_lengths: list[int]
    batches: list[int]
    new_tokens: int
    repeats: int


@dataclass
class Harness:
    """`tasks` of lm-evaluation-harness by name; `include_path`: a folder with the YAML files of further ones.

    `num_fewshot`: examples before each question, where a task does not say; `limit`: only the first so many questions.
    """

    tasks: list[str]
    include_path: str | None
    num_fewshot: int | None
    limit: int | None
    apply_chat_template: bool


@dataclass
class Evaluate:
    """`task`: JSON Lines of questions, relative to the project; `limit`: ask only the first so many.

    `scorer`: for every question, instead of what the task says of each. `candidates`: further models, by name, to
    measure against the reference. `contract_examples`: on how many questions the signature's promises are tried.
    `gates`: by name, the fields of a `steps.evaluation.gates.Gate`.
    """

    task: str
    scorer: str | None
    limit: int | None
    max_tokens: int
    candidates: dict[str, str]
    contract_examples: int
    fidelity: Fidelity
    cost: Cost
    harness: Harness
    gates: dict[str, Any]


@dataclass
class Register:
    """`name`: of the registered model. `promote`: make the build champion, if it is at least as good as the champion.

    `promote_margin`: the share of right answers by which it may at most be worse, with 95 % confidence. `rollback`:
    only make the previous version champion again; `reason`: why. `sign_key`: the file of a private key to sign with.
    `verify_key`: the file of a public key; only check the signature of `version`, or else of the champion.
    """

    name: str
    promote: bool
    promote_margin: float
    rollback: bool
    reason: str | None
    sign_key: str | None
    verify_key: str | None
    version: int | None


@dataclass
class Sweep:
    """`objective`: the metric that makes a trial the best; `direction`: `maximize` or `minimize`.

    `jobs`: trials at a time. `ray`: the address of the Ray cluster that they run on, `auto` for the one that this
    machine belongs to; otherwise they run on this machine. `register`: register the best, which passed its gates;
    otherwise none is.
    """

    objective: str
    direction: str
    jobs: int
    ray: str | None
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


def holds_text(key: str) -> bool:
    """Return whether the dotted *key* is declared as a string."""
    kind: object = Config
    for part in key.split("."):
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else None
    return kind in (str, str | None)


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
