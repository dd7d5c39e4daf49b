"""The README of an export: the version's model card, and how its folder is used."""

import shlex
from collections.abc import Collection, Mapping
from pathlib import Path

from steps.config.onnx import RECIPE_KEYS
from steps.records.tags import CALIBRATED, RECIPE
from steps.records.templates import render

TEMPLATE = Path(__file__).with_name("readme.md.jinja")

SCORES = "\n## What it scored\n"
"""The heading in a version's description under which its figures stand."""

MEANINGS = {
    "LICENSE": "the checkpoint's licence",
    "NOTICE": "the checkpoint's notices",
    "CHECKPOINT": "the checkpoint's own card",
    "bom": "a bill of materials (CycloneDX)",
    "signature": "the signature of the registered version (OpenSSF model signing). It lists the hash of each file here",
}
"""What files are that not every export has, by how their names begin."""


def readme(name: str, version: str, tags: Mapping[str, str], card: str, question: str, files: Collection[str]) -> str:
    """Return the README of version *version* of *name*, which *tags* and its description *card* describe.

    *question*: what the example is to be asked. *files*: the optional files of the export.
    """
    return render(
        TEMPLATE,
        escape=False,
        name=name,
        version=version,
        tags=tags,
        recipe=recipe_of(tags),
        scores=card.partition(SCORES)[2].partition("\n## ")[0].strip(),
        question=shlex.quote(question),
        others={file: next(text for start, text in MEANINGS.items() if file.startswith(start)) for file in files},
    )


def recipe_of(tags: Mapping[str, str]) -> str:
    """Return in one line how the weights of the version with *tags* were quantised."""
    chosen = f"`{tags[RECIPE]}`, chosen by onnx=auto; " if RECIPE in tags else ""
    values = {key: tags.get(f"onnx.{key}") for key in RECIPE_KEYS}
    calibrated = f"; rounded by {tags[CALIBRATED]}" if CALIBRATED in tags else ""
    return chosen + ", ".join(f"{key} {value}" for key, value in values.items() if value) + calibrated
