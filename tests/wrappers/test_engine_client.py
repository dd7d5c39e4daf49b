"""What the engine client sends to the engine, and what it makes of its messages."""

import asyncio
import os
import signal
import threading
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from steps.wrappers.onnx.model import OnnxChatModel
from steps.wrappers.onnx.output import RequestOutput
from steps.wrappers.onnx.request import read_request

from .asking import ask, load, output_for, text_of

PROGRAMS = Path(__file__).parents[1] / "programs"


@pytest.fixture
def echo(onnx_folder: Path) -> OnnxChatModel:
    return load(onnx_folder, PROGRAMS / "echo_engine.py")


def test_an_abandoned_stream_frees_the_model(echo: OnnxChatModel) -> None:
    waiting = output_for(echo, "hello")
    with echo.engine.generating([waiting]):
        stream = echo.predict_stream(None, ask("hello", max_tokens=1, n=3))
        next(stream)
        stream.close()
        assert waiting.finished.wait(60)
    assert waiting.error == f"dropped {[waiting.id + n for n in (1, 2, 3)]}"


def test_an_answer_that_met_its_stop_string_is_given_up_while_others_of_its_call_go_on(
    echo: OnnxChatModel,
) -> None:
    stopped, waiting = output_for(echo, "hello world, the quick", stop="wor"), output_for(echo, "hello")
    with echo.engine.generating([stopped, waiting]):
        assert waiting.finished.wait(60)
    assert (stopped.text, stopped.finish_reason) == ("hello ", "stop")
    assert waiting.error == f"dropped [{stopped.id}]"


def test_a_process_that_talks_nonsense_fails_what_it_was_at(onnx_folder: Path) -> None:
    model = load(onnx_folder, PROGRAMS / "nonsense_engine.py")
    waiting = output_for(model, "hello")
    with model.engine.generating([waiting]):
        assert waiting.finished.wait(60)
    assert waiting.error == (
        "the model's process was not understood, TypeError: string indices must be integers, not 'str'; "
        "the next request starts it again"
    )


def test_a_failure_of_og_is_an_error_and_the_model_goes_on(onnx_folder: Path) -> None:
    model = load(onnx_folder)
    request = read_request({}, [10**6], 512, 5)  # an id that the model has no embedding for
    output = RequestOutput(request, model.tokenizer)
    with model.engine.generating([output]):
        assert output.finished.wait(10)
    with pytest.raises(MlflowException, match=r"^onnxruntime-genai: .*out of data bounds"):
        output.raise_if_failed()
    assert model.predict(None, ask("hello", max_tokens=1))


async def streamed(model: OnnxChatModel, prompt: str, pieces: int | None = None) -> tuple[RequestOutput, list[str]]:
    """Return what a request in an event loop gets, cancelled after so many *pieces* of text."""
    loop = asyncio.get_running_loop()
    news: asyncio.Queue[str | None] = asyncio.Queue()

    def tell(text: str | None) -> None:
        loop.call_soon_threadsafe(news.put_nowait, text)

    # One that is to be cancelled must not reach its end before: the engine does not wait for the event loop.
    tokens = 60 if pieces is None else 480
    (request,) = model.read_requests(ask(prompt, max_tokens=tokens), None, streaming=True)
    output = RequestOutput(request, model.tokenizer, on_text=tell, on_finish=lambda: tell(None))
    model.engine.submit([output])
    texts: list[str] = []
    while (text := await asyncio.wait_for(news.get(), 60)) is not None:
        texts.append(text)
        if len(texts) == pieces:
            model.engine.cancel([output])
            at_cancel = output.text
    if pieces is not None:
        assert output.text == at_cancel, "nothing is added once it is cancelled"
    return output, texts


def test_an_event_loop_streams_many_requests_and_starts_no_thread_for_them(onnx_folder: Path) -> None:
    model = load(onnx_folder)
    prompts = [f"hello {n}" for n in range(20)]
    expected = [text_of(answer) for answer in model.predict(None, [ask(text, max_tokens=60) for text in prompts])]  # type: ignore[arg-type]
    before = threading.active_count()

    async def all_at_once() -> list[tuple[RequestOutput, list[str]]]:
        found = await asyncio.gather(*(streamed(model, prompt) for prompt in prompts))
        assert threading.active_count() == before
        return list(found)

    found = asyncio.run(all_at_once())
    assert ["".join(texts) for _, texts in found] == [output.text for output, _ in found] == expected
    assert model.engine.unfinished == 0


def test_a_request_that_is_cancelled_in_an_event_loop_ends_at_once_and_the_others_go_on(onnx_folder: Path) -> None:
    model = load(onnx_folder)

    async def both() -> list[tuple[RequestOutput, list[str]]]:
        return list(await asyncio.gather(streamed(model, "hello", pieces=1), streamed(model, "what is")))

    (cancelled, texts), (other, _) = asyncio.run(both())
    # Pieces that were on their way to the loop still arrive; that is all that was generated before the call.
    assert (cancelled.finish_reason, "".join(texts)) == ("cancelled", cancelled.text)
    assert other.text == text_of(model.predict(None, ask("what is", max_tokens=60))[0])  # type: ignore[arg-type]


def test_neither_submit_nor_cancel_waits_for_an_engine_that_does_not_read(onnx_folder: Path) -> None:
    model = load(onnx_folder)
    os.kill(model.engine.pid, signal.SIGSTOP)
    outputs = [output_for(model, "hello " * 60) for _ in range(400)]  # more than a pipe holds
    model.engine.submit(outputs)
    model.engine.cancel(outputs)
    assert {output.finish_reason for output in outputs} == {"cancelled"}
    assert model.engine.unfinished == 0
    model.engine.close()


def test_a_callback_that_fails_fails_its_own_request_alone(onnx_folder: Path) -> None:
    model = load(onnx_folder)

    def fail(*_: str) -> None:
        raise RuntimeError

    (request,) = model.read_requests(ask("hello", max_tokens=20), None, streaming=True)
    broken = RequestOutput(request, model.tokenizer, on_text=fail, on_finish=fail)
    with model.engine.generating([broken, other := output_for(model, "hello")]):
        assert broken.finished.wait(60)
        assert other.finished.wait(60)
    assert broken.finish_reason == "failed"
    assert other.finish_reason in ("stop", "length")
