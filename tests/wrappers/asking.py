"""How the wrapper's tests load a model, ask it and read its answers."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlflow.pyfunc.model import PythonModelContext

from steps.wrappers.onnx.engine.scheduler import Scheduler
from steps.wrappers.onnx.engine.sequence import Sequence
from steps.wrappers.onnx.engine_client import EngineClient
from steps.wrappers.onnx.model import OnnxChatModel
from steps.wrappers.onnx.output import RequestOutput
from steps.wrappers.onnx.request import read_request

HARD_TEXT = [
    "What is the capital of Spain?",
    "   three spaces before,  two within, and after   ",
    "\n\nlines\n\n  and\ttabs\r\n\t",
    "à é î õ ü ß ñ Ångström, e\u0301 in two parts",
    "東京は日本の首都です。서울은 수도",
    "👩‍👩‍👧‍👦 family, 🇪🇸 flag, 👍🏽 tone",
    "ᚠᛇᚻ 𐍈 ሰላም བོད 𒀀",
    "zero\u200bwidth \u00a0space \u2028line \ufeffmark \x07bell",
    "▁ the metaspace itself, <0x41> a byte's name, �",
    "x" * 300,
    "{{ messages }} {% raw %} <|end <| |> end|>",
]


def ask(content: str, **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **options}


def text_of(answer: dict[str, Any], choice: int = 0) -> str:
    return str(answer["choices"][choice]["message"]["content"])


def load(folder: Path, program: Path | None = None, **model_config: Any) -> OnnxChatModel:
    """Return the wrapper of the model in *folder*, with *program* in the place of its engine."""
    model = OnnxChatModel()
    model.load_context(PythonModelContext({"onnx": str(folder)}, model_config))
    if program:
        model.engine.close()
        model.engine = EngineClient(folder, 1, {}, program)
        model.engine.wait()
    return model


def generate(engine: Scheduler, sequences: Iterable[Sequence]) -> list[list[int]]:
    """Return the tokens of *sequences*, which begin together."""
    sequences = list(sequences)
    for each in sequences:
        engine.add(each)
    while not engine.idle:
        _tokens, errors = engine.step()
        assert not errors
    return [each.tokens for each in sequences]


def output_for(model: OnnxChatModel, prompt: str, **options: Any) -> RequestOutput:
    """Return the output of a request that nothing generates yet."""
    request = read_request(options, model.tokenizer.encode_prompt(prompt), model.engine.context, 100)
    return RequestOutput(request, model.tokenizer)
