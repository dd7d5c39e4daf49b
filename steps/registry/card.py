"""The model card of a version in Markdown: what it is, where it comes from, its scores, how to use it, its limits."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steps.records.templates import render

TEMPLATE = Path(__file__).with_name("card.md.jinja")

LONGEST = 5_000
"""Maximum length of a description, in characters, if MLflow's registry is a database."""


@dataclass(frozen=True)
class Scores:
    """evaluate's results: a `table` in Markdown, the reason that each of the `gates` gave, the number of `examples`."""

    table: str
    gates: Sequence[str]
    examples: int
    task: str


def model_card(name: str, number: str, tags: Mapping[str, str], scores: Scores, question: str) -> str:
    """Return the card of version *number* of *name*, which *tags* describe, with *question* as its example.

    At most LONGEST characters: if it is longer, the last rows of the scores are left out.
    """
    rows = scores.table.strip().split("\n")
    card = _render(name, number, tags, scores, rows, question)
    for kept in range(len(rows) - 1, 1, -1):
        if len(card) <= LONGEST:
            break
        card = _render(
            name, number, tags, scores, [*rows[:kept], "", "The other figures are in that report."], question
        )
    return card[:LONGEST]


def _render(name: str, number: str, tags: Mapping[str, str], scores: Scores, rows: Sequence[str], question: str) -> str:
    request = example_request(tags, question)
    body = (
        {"dataframe_split": {"columns": ["prompt"], "data": [[request["prompt"]]]}} if "prompt" in request else request
    )
    return render(
        TEMPLATE,
        escape=False,  # Markdown, which MLflow's UI sanitises
        name=name,
        number=number,
        wrapper=tags["wrapper"],
        tags=tags,
        weights=_weights(tags),
        scores=rows,
        gates=scores.gates,
        examples=scores.examples,
        task=scores.task,
        request=json.dumps(request, ensure_ascii=False),
        body=shlex.quote(json.dumps(body, ensure_ascii=False)),
    )


def _weights(tags: Mapping[str, str]) -> str:
    precision = tags.get("onnx.precision")
    if precision is None:
        return "built by its publisher"
    return f"{precision}, block size {tags['onnx.block_size']}" if precision.startswith("int") else precision


def example_request(tags: Mapping[str, str], question: str) -> dict[str, object]:
    """Return an input for the version that *tags* describe."""
    if tags.get("onnx.interface") == "prompt":
        return {"prompt": question}
    return {"messages": [{"role": "user", "content": question}]}
