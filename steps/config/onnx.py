"""The types of what build_onnx_wrapper is asked for."""

from dataclasses import dataclass
from enum import Enum
from typing import Any


class Interface(Enum):
    """The ONNX wrapper's interface: Chat Completions, or a prompt string in and a string out."""

    chat = "chat"
    prompt = "prompt"


class Precision(Enum):
    """The precisions that onnxruntime-genai's builder supports."""

    int4 = "int4"
    int8 = "int8"
    fp16 = "fp16"
    fp32 = "fp32"


class ExecutionProvider(Enum):
    """Where the ONNX model is to run."""

    cpu = "cpu"
    cuda = "cuda"


RECIPE_KEYS = ("precision", "algorithm", "symmetric", "shared_embedding", "block_size", "accuracy_level")
"""The fields of `BuildOnnxWrapper` that make a recipe."""


@dataclass
class Ladder:
    """`recipes`: names of `onnx_recipes.LADDER`, tried in this order until one keeps the fidelity gates of `gates`.

    Fidelity is measured on the first `questions` of `task`, with their references as answers, and on the file `text`,
    in pieces of at most `context` tokens. `scorer`, `limit`: as in evaluate. `seed`: for the intervals.
    """

    recipes: list[str]
    gates: dict[str, Any]
    task: str
    scorer: str | None
    limit: int | None
    questions: int | None
    text: str | None
    context: int
    seed: int


@dataclass
class Calibration:
    """Texts by which int4 weights are rounded: *samples* of *tokens* tokens, each layer in *iterations* steps.

    `file`: a text, or a task (.jsonl) of which the chats are taken; null: texts sampled from the model itself.
    """

    file: str | None
    samples: int
    tokens: int
    iterations: int


@dataclass
class BuildOnnxWrapper:
    """What onnxruntime-genai's builder is asked for, and how the wrapper answers.

    `precision` to `accuracy_level` are the fields of an `onnx_recipes.Recipe`. With a `ladder`, its recipes set these
    fields; a block size or accuracy level that is set as well applies to every recipe. `repo_id`, `revision`, `folder`
    name a prebuilt ONNX folder in a repository; then nothing is built. With a `calibration` the linear layers are
    rounded by its texts, and `algorithm` applies to the head only.
    """

    interface: Interface
    execution_provider: ExecutionProvider
    precision: Precision | None
    algorithm: str | None
    symmetric: bool | None
    shared_embedding: bool | None
    block_size: int | None
    accuracy_level: int | None
    ladder: Ladder | None
    calibration: Calibration | None
    max_tokens: int
    repo_id: str | None
    revision: str | None
    folder: str | None
