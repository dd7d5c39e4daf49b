"""Ways to generate text from the same weights, all as one function: prompts and a number of tokens in, seconds out."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from benchmarks.document_wrapper import DocumentWrapper
from steps.wrappers.onnx.model import OnnxChatModel
from steps.wrappers.onnx.tokenizer import ChatTokenizer

Contender = Callable[[Sequence[str], int], tuple[int, float]]
"""(prompts, max_tokens) → tokens generated in all, and wall seconds. A prompt is what a user says."""


def timed(generate: Callable[[], int]) -> tuple[int, float]:
    """Return what *generate* returns, the number of tokens, and its seconds."""
    started = time.perf_counter()
    tokens = generate()
    return tokens, time.perf_counter() - started


def load(model: PythonModel, folder: Path, **model_config: Any) -> Any:  # noqa: ANN401
    """Return *model* as MLflow loads it, with *folder* as its artifact "onnx"."""
    model.load_context(PythonModelContext({"onnx": str(folder)}, model_config))
    return model


def ask(text: str, max_tokens: int) -> dict[str, Any]:
    """Return the Chat Completions request that says *text*."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": max_tokens}


def wrapper(model: OnnxChatModel) -> Contender:
    """Return the project's wrapper, every prompt a row of one call."""

    def generate(prompts: Sequence[str], max_tokens: int) -> tuple[int, float]:
        rows: Any = [ask(prompt, max_tokens) for prompt in prompts]
        return timed(lambda: sum(a["usage"]["completion_tokens"] for a in model.predict(None, rows)))

    return generate


class BareLoop:
    """og's own loop over one batch, on one model: what nothing around it can be faster than.

    A thread that waits for the other spins, as by default, or sleeps with *sleep*.
    """

    def __init__(self, folder: Path, threads: int, *, sleep: bool = False) -> None:
        config = og.Config(str(folder))
        session: dict[str, object] = {"intra_op_num_threads": threads}
        if sleep:
            session["session.intra_op.allow_spinning"] = "0"
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        self.tokenizer = ChatTokenizer(folder)
        ends = json.loads((folder / "genai_config.json").read_text())["model"]["eos_token_id"]
        self.ends = {*ends} if isinstance(ends, list) else {ends}

    def __call__(self, prompts: Sequence[str], max_tokens: int) -> tuple[int, float]:
        """Generate; the prompts are of one length, and their encoding is not in the seconds."""
        ids = np.array([self.tokenizer.encode_chat(ask(p, 1)["messages"]) for p in prompts], dtype=np.int32)
        return timed(lambda: self._generate(ids, max_tokens))

    def _generate(self, ids: np.ndarray[Any, np.dtype[np.int32]], max_tokens: int) -> int:
        params = og.GeneratorParams(self.model)
        params.set_search_options(batch_size=len(ids), max_length=ids.shape[1] + max_tokens, do_sample=False)
        generator = og.Generator(self.model, params)
        generator.append_tokens(ids)
        running, made = set(range(len(ids))), 0
        while running and not generator.is_done():
            generator.generate_next_token()
            tokens = generator.get_next_tokens()
            made += len(running)
            running -= {row for row in running if int(tokens[row]) in self.ends}
        return made


class OgEngine(BareLoop):
    """og's Engine: requests instead of rows."""

    def _generate(self, ids: np.ndarray[Any, np.dtype[np.int32]], max_tokens: int) -> int:
        engine = og.Engine(self.model)
        requests = []
        for prompt in ids:
            options = og.RequestOptions()
            options.set_max_session_tokens(len(prompt) + max_tokens)
            request = engine.create_request(options=options)
            turn = og.TurnOptions(request)
            turn.set_do_sample(False)
            turn.set_max_generated_tokens(max_tokens)
            request.begin_turn(prompt, turn)
            requests.append(request)
        events, made = engine.create_event_buffer(64), 0
        while engine.has_pending_requests():
            for event in engine.run(events):
                made += bool(int(event.flags) & int(og.EngineEventFlags.TOKEN.value))
        for request in requests:
            request.close()
        return made


def document(model: DocumentWrapper) -> Contender:
    """Return the source document's wrapper, a call for each prompt, of which it answers one."""
    text = "<|user|>\n{}<|end|>\n<|assistant|>\n"

    def generate(prompts: Sequence[str], max_tokens: int) -> tuple[int, float]:
        return timed(lambda: sum(len(list(model.tokens(text.format(p), max_tokens))) for p in prompts))

    return generate


def pipeline(checkpoint: Path, threads: int) -> Contender:
    """Return transformers' text-generation pipeline on the checkpoint, in its own dtype, greedy."""
    import torch
    import transformers

    library: Any = transformers
    torch.set_num_threads(threads)
    library.logging.set_verbosity_error()
    generator = library.pipeline("text-generation", model=str(checkpoint), dtype="auto")

    def generate(prompts: Sequence[str], max_tokens: int) -> tuple[int, float]:
        chats = [ask(prompt, max_tokens)["messages"] for prompt in prompts]

        def run() -> int:
            made = generator(
                chats, max_new_tokens=max_tokens, do_sample=False, batch_size=len(chats), return_tensors=True
            )
            return sum(len(each[0]["generated_token_ids"]) - len(p) - 6 for each, p in zip(made, prompts, strict=True))

        return timed(run)

    return generate


def llama_cpp(gguf: Path, folder: Path, threads: int) -> Contender:
    """Return llama.cpp on the same weights, and the same ids as *folder*'s tokenizer gives."""
    import llama_cpp as library

    llama = library.Llama(str(gguf), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    tokenizer = ChatTokenizer(folder)

    def answer(ids: list[int], max_tokens: int) -> Iterator[int]:
        for made, token in enumerate(llama.generate(ids, top_k=1, temp=0.0, reset=True), 1):
            yield token
            if made == max_tokens:
                return

    def generate(prompts: Sequence[str], max_tokens: int) -> tuple[int, float]:
        encoded = [tokenizer.encode_chat(ask(prompt, max_tokens)["messages"]) for prompt in prompts]
        return timed(lambda: sum(len(list(answer(ids, max_tokens))) for ids in encoded))

    return generate
