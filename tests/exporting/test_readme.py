"""An export's README says what it is, where it comes from, what it scored, its licence, and how to use it."""

import pytest

from steps.exporting.readme import readme
from steps.registry.card import Scores, model_card

TAGS = {
    "wrapper": "onnx",
    "model.location": "someone/echo",
    "model.revision": "a" * 40,
    "model.licence": "mit",
    "model.sha256": "b" * 64,
    "code.commit": "c" * 40,
    "code.dirty": "false",
    "build.run_id": "d" * 32,
    "evaluate.run_id": "e" * 32,
    "onnx.execution_provider": "cpu",
    "onnx.interface": "chat",
}
BUILT = TAGS | {"onnx.precision": "int4", "onnx.block_size": "32", "onnx.algorithm": ""}
CHOSEN = BUILT | {"onnx.recipe": "int4_mixed"}
ROUNDED = BUILT | {"onnx.calibration": "auto-round 1, 4 texts of 48 tokens of the model itself"}
PREBUILT = TAGS | {"onnx.location": "someone/echo-onnx", "onnx.folder": "cpu", "onnx.revision": "f" * 40}
SCORES = Scores(
    "| | onnx |\n|---|---|\n| Right answers | 99 % |\n", ["onnx.task.accuracy keeps 0.9"], 60, "data/x.jsonl"
)


def text(tags: dict[str, str], card: str | None = None, question: str = "What's up?") -> str:
    card = model_card("echo", "3", tags, SCORES, question) if card is None else card
    return readme("echo", "3", tags, card, question, ["LICENSE", "signature/echo-3.sig"])


@pytest.mark.parametrize(
    ("tags", "recipe"),
    [
        (BUILT, "**Recipe:** precision int4, block_size 32\n"),
        (CHOSEN, "**Recipe:** `int4_mixed`, chosen by onnx=auto; precision int4, block_size 32\n"),
        (ROUNDED, "block_size 32; rounded by auto-round 1, 4 texts of 48 tokens of the model itself\n"),
        (PREBUILT, "**ONNX:** `someone/echo-onnx`, folder `cpu`, at revision `" + "f" * 40),
    ],
)
def test_it_says_where_the_weights_come_from(tags: dict[str, str], recipe: str) -> None:
    assert recipe in text(tags)


def test_it_has_version_commit_licence_and_every_figure_of_the_card() -> None:
    said = text(BUILT)
    for fact in ("models:/echo/3", "b" * 64, "a" * 40, "c" * 40, "mit, as the checkpoint's card states"):
        assert fact in said
    assert "60 questions of `data/x.jsonl`" in said
    assert "| Right answers | 99 % |" in said
    assert "- `onnx.task.accuracy keeps 0.9`" in said
    assert "mlflow." not in said


def test_it_names_the_files_and_quotes_the_question_for_a_shell() -> None:
    said = text(BUILT)
    assert "| `LICENSE` | the checkpoint's licence |" in said
    assert "| `signature/echo-3.sig` | the signature of the registered version" in said
    assert """python example.py 'What'"'"'s up?'\n""" in said


def test_a_description_that_somebody_rewrote_leaves_the_run_to_look_at() -> None:
    assert f"has no figures; the run `{'e' * 32}` has them." in text(BUILT, card="my model")
