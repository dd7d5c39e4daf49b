"""A version's card says what it is, where it comes from, what it scored, how to use it; and it is short enough."""

import pytest

from steps.registry.card import LONGEST, Scores, model_card

ORIGIN = {
    "model.location": "someone/echo",
    "model.revision": "a" * 40,
    "model.licence": "mit",
    "model.sha256": "b" * 64,
    "code.commit": "c" * 40,
    "code.dirty": "false",
    "build.run_id": "d" * 32,
    "evaluate.run_id": "e" * 32,
}
PIPELINE = {"wrapper": "pipeline", **ORIGIN}
ONNX = {
    "wrapper": "onnx",
    **ORIGIN,
    "onnx.precision": "int4",
    "onnx.block_size": "32",
    "onnx.execution_provider": "cpu",
    "onnx.interface": "chat",
}
PREBUILT = {key: value for key, value in ONNX.items() if key not in ("onnx.precision", "onnx.block_size")} | {
    "onnx.location": "someone/echo-onnx",
    "onnx.folder": "cpu",
    "onnx.revision": "f" * 40,
}
SCORES = Scores(
    "| | onnx |\n|---|---|\n| Right answers | 99 % |\n", ["onnx.task.accuracy keeps 0.9"], 60, "data/x.jsonl"
)


def card(tags: dict[str, str], scores: Scores = SCORES, question: str = "What's up?") -> str:
    return model_card("echo", "3", tags, scores, question)


@pytest.mark.parametrize(
    ("tags", "text"),
    [
        (PIPELINE, "A chat model in PyTorch, with the weights as published"),
        (ONNX, "run by onnxruntime-genai on cpu: int4, block size 32."),
        (ONNX | {"onnx.precision": "fp16"}, "run by onnxruntime-genai on cpu: fp16."),
        (PREBUILT, "**ONNX:** `someone/echo-onnx`, folder `cpu`, at revision `" + "f" * 40),
    ],
)
def test_it_says_what_it_is(tags: dict[str, str], text: str) -> None:
    assert text in card(tags)


def test_it_has_every_section_and_the_licence() -> None:
    sections = ["Where it comes from", "What it scored", "How to use it", "Limits", "Licence"]
    assert [line.removeprefix("## ") for line in card(ONNX).splitlines() if line.startswith("## ")] == sections
    assert "mit, as the checkpoint's card states" in card(ONNX)
    assert "60 questions of `data/x.jsonl`" in card(ONNX)
    assert "| Right answers | 99 % |" in card(ONNX)
    assert "- `onnx.task.accuracy keeps 0.9`" in card(ONNX)


@pytest.mark.parametrize(("dirty", "text"), [("true", "` with uncommitted changes, run `"), ("false", "`, run `")])
def test_it_says_whether_the_code_was_committed(dirty: str, text: str) -> None:
    assert f"commit `{'c' * 40}{text}{'d' * 32}`" in card(ONNX | {"code.dirty": dirty})


def test_its_example_is_one_that_the_version_takes_and_a_shell_understands() -> None:
    assert 'load_model("models:/echo/3")' in card(ONNX)
    assert "mlflow models serve -m models:/echo/3 --env-manager uv" in card(ONNX)
    assert """model.predict({"messages": [{"role": "user", "content": "What's up?"}]})""" in card(ONNX)
    assert """-d '{"messages": [{"role": "user", "content": "What'"'"'s up?"}]}'""" in card(ONNX)
    prompt = card(ONNX | {"onnx.interface": "prompt"})
    assert """model.predict({"prompt": "What's up?"})""" in prompt
    assert '"dataframe_split": {"columns": ["prompt"], "data": [["What' in prompt


def test_a_long_table_makes_room_and_the_rest_stays_whole() -> None:
    rows = "".join(f"| Figure {number} | {number} % |\n" for number in range(400))
    text = card(ONNX, Scores(f"| | onnx |\n|---|---|\n{rows}", SCORES.gates, 60, "data/x.jsonl"))
    assert 4_900 < len(text) <= LONGEST
    assert "| Figure 1 | 1 % |" in text
    assert "The other figures are in that report." in text
    assert text.endswith("It applies to this version too.\n")
