"""The steps of the chain, and the types of the configuration. The values are in conf/, each once."""

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from steps.config.entry_points import Export, Monitor, Serve, Sweep
from steps.config.onnx import BuildOnnxWrapper

ROOT = Path(__file__).resolve().parents[2]
"""The project's folder: MLflow's clone, or the user's own."""


def project_path(path: str | Path) -> Path:
    """Return *path* as an absolute path; a relative one is relative to the project."""
    return ROOT / os.path.expanduser(path)  # noqa: PTH111  Path raises if ~name is nobody


@dataclass(frozen=True)
class Step:
    """A step of the chain: what it builds on, reads, and hands over.

    `builds_on`: the steps whose runs it needs. `reads`: the parts of the configuration that can change its result.
    `hands_over`: the names of its outputs. `run_key`: the key in the configuration and in MLproject that names a
    finished run of this step; None if no step builds on it.
    """

    builds_on: tuple[str, ...]
    reads: tuple[str, ...]
    hands_over: tuple[str, ...]
    run_key: str | None


STEPS = {
    "fetch_model": Step(
        builds_on=(),
        reads=("model", "fetch_model", "build_onnx_wrapper.repo_id"),
        hands_over=("snapshot",),
        run_key="fetch_run_id",
    ),
    "build_pipeline_wrapper": Step(
        builds_on=("fetch_model",),
        reads=("build_pipeline_wrapper", "question"),
        hands_over=("model_uri",),
        run_key="pipeline_run_id",
    ),
    "build_onnx_wrapper": Step(
        builds_on=("fetch_model",),
        reads=("build_onnx_wrapper", "fetch_model.offline", "model.name", "question"),
        hands_over=("model_uri",),
        run_key="onnx_run_id",
    ),
    "evaluate": Step(
        builds_on=("build_pipeline_wrapper", "build_onnx_wrapper"),
        reads=("evaluate", "model.name", "seed"),
        hands_over=("gates", "report", "summary"),
        run_key="evaluate_run_id",
    ),
    "register": Step(
        builds_on=("evaluate",),
        reads=("register", "question"),
        hands_over=("pipeline_version_uri", "onnx_version_uri", "model_uri"),
        run_key=None,
    ),
}
"""The chain, in order. A step's name is also its entry point, its module, and its section of the configuration."""

CANDIDATES = {"pipeline": "build_pipeline_wrapper", "onnx": "build_onnx_wrapper"}
"""The candidates that evaluate compares, and the steps that build them."""

REFERENCE, BUILD = "pipeline", "onnx"
"""The candidate that the others are compared with, and the candidate that the gates judge."""


FIDELITY = f"{BUILD}.fidelity."
"""How the metrics begin that say how close the build is to the reference."""


class Source(Enum):
    """Where a snapshot comes from."""

    local = "local"
    hub = "hub"


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
    """`log_files_mb`: log a snapshot of up to this size (MB) as a whole; of a larger one, log the manifest only.

    `offline`: take the snapshot from the hub's cache, without asking the hub.
    """

    log_files_mb: float
    offline: bool


@dataclass
class BuildPipelineWrapper:
    """`max_new_tokens`: the length limit of an answer if the request gives none. `dtype`: torch's, or `auto`."""

    max_new_tokens: int
    dtype: str


@dataclass
class Fidelity:
    """`questions`: how many of the task's questions are used, from the first; null: all.

    Probabilities are compared on their answers. `text`: a text file on which they are compared in addition; `context`:
    tokens at a time.
    """

    questions: int | None
    text: str | None
    context: int


@dataclass
class Cost:
    """What is timed: every prompt length (tokens) with every batch size (prompts in a call), `repeats` times.

    `new_tokens`: how many tokens are generated at most for each prompt.
    """

    prompt_lengths: list[int]
    batches: list[int]
    new_tokens: int
    repeats: int


@dataclass
class Harness:
    """`tasks` of lm-evaluation-harness by name; `include_path`: a folder with the YAML files of further tasks.

    `num_fewshot`: examples before each question, if the task does not say; `limit`: number of questions.
    `apply_chat_template`: ask as a chat; otherwise as plain text.
    """

    tasks: list[str]
    include_path: str | None
    num_fewshot: int | None
    limit: int | None
    apply_chat_template: bool


@dataclass
class Evaluate:
    """`task`: a JSON Lines file of questions, relative to the project; `limit`: number of questions.

    `scorer`: of the questions that name none. `candidates`: further models to measure against the reference, by
    name. `timed_examples`: number of questions that are asked one at a time, and timed; the rest goes in batches.
    `contract_examples`: number of questions on which the signature is checked. `gates`: by name, the fields of a
    `steps.evaluation.gates.Gate`.
    """

    task: str
    scorer: str | None
    limit: int | None
    max_tokens: int
    candidates: dict[str, str]
    timed_examples: int
    contract_examples: int
    fidelity: Fidelity
    cost: Cost
    harness: Harness
    gates: dict[str, Any]


@dataclass
class Register:
    """`name`: the registered model's name.

    `promote`: make the build champion if it is at least as good as the champion. `promote_margin`: how much lower its
    share of right answers may be, with 95 % confidence. `rollback`: register nothing; make the previous champion
    champion again, for `reason`. `bom`: log a bill of materials. `sign_key`: the file of a private key to sign with.
    `verify_key`: the file of a public key; register nothing, and verify the signature of `version`, by default of the
    champion.
    """

    name: str
    promote: bool
    promote_margin: float
    rollback: bool
    reason: str | None
    bom: bool
    sign_key: str | None
    verify_key: str | None
    version: int | None


@dataclass
class Flow:
    """`jobs`: how many steps may run at a time; null: as cores and memory allow."""

    jobs: int | None


@dataclass
class Config:
    """The whole configuration, resolved."""

    model: Model
    fetch_model: FetchModel
    build_pipeline_wrapper: BuildPipelineWrapper
    build_onnx_wrapper: BuildOnnxWrapper
    evaluate: Evaluate
    register: Register
    flow: Flow
    sweep: Sweep
    serve: Serve
    export: Export
    monitor: Monitor
    question: str
    seed: int
    steps: list[str]
    reuse: bool
    plan: bool
    fetch_run_id: str | None
    pipeline_run_id: str | None
    onnx_run_id: str | None
    evaluate_run_id: str | None
