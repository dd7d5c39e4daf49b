"""A model of MLflow's transformers flavour, with the interface of the ONNX wrapper: one request at a time."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlflow.pyfunc import PyFuncModel

from steps.wrappers.onnx.engine.logprobs import token_logprobs
from steps.wrappers.onnx.engine.og_model import LONG_ROPE_LIMIT
from steps.wrappers.onnx.fields import refuse
from steps.wrappers.onnx.model import OnnxChatModel
from steps.wrappers.onnx.output import RequestOutput
from steps.wrappers.onnx.request import Request
from steps.wrappers.onnx.tokenizer import ChatTokenizer

LEAST_TEMPERATURE = 1e-4
"""As in engine/sampling.py: logits divided by less have no finite sum."""


class TransformersModel(OnnxChatModel):
    """Reads requests as the ONNX wrapper does, and has PyTorch continue their prompts."""

    def __init__(self, model: PyFuncModel, folder: Path) -> None:
        """Serve *model*, which MLflow has loaded from *folder*."""
        self.is_chat, self.model_name = True, folder.name
        self.max_tokens = int((model.model_config or {}).get("max_new_tokens", self.CONFIG["max_tokens"]))
        self.tokenizer = ChatTokenizer(folder / "components" / "tokenizer")
        self.engine: Any = TorchEngine(model.get_raw_model().model, model.model_config or {})

    def read_requests(self, model_input: object, params: dict[str, Any] | None, *, streaming: bool) -> list[Request]:
        """See OnnxChatModel; without JSON schemas, and so without calls that are forced."""
        requests = super().read_requests(model_input, params, streaming=streaming)
        if any(request.json_schema and request.tools for request in requests):
            refuse("tool_choice is not supported by the pipeline wrapper, except for 'auto' and 'none'")
        if any(request.json_schema for request in requests):
            refuse("response_format is not supported by the pipeline wrapper, except for {'type': 'text'}")
        return requests


class TorchEngine:
    """Continues prompts one after the other, in a thread; see EngineClient."""

    def __init__(self, model: Any, options: Mapping[str, Any]) -> None:  # noqa: ANN401  # transformers has no types
        """*options*: those with which the model was logged; its end tokens are among them."""
        self.context = int(model.config.max_position_embeddings)
        has_long_rope = model.config.model_type == "phi3" and self.context > LONG_ROPE_LIMIT
        self._rope_limit = LONG_ROPE_LIMIT if has_long_rope else self.context
        stated = model.generation_config
        ends = options.get("eos_token_id", stated.eos_token_id)
        self._ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        # A new one: generate would take from the checkpoint's own whatever a request does not say, such as min_p.
        model.generation_config = type(stated)(eos_token_id=self._ends or None, pad_token_id=stated.pad_token_id)
        self._model = model
        self._thread = ThreadPoolExecutor(1)
        self._outputs: set[RequestOutput] = set()  # that are not finished

    @property
    def stats(self) -> dict[str, Any]:
        """The engine's Stats that apply here."""
        unfinished = len(self._outputs)
        return {"running": min(1, unfinished), "waiting": max(0, unfinished - 1)}

    def submit(self, outputs: Sequence[RequestOutput]) -> None:
        """Have *outputs* generated; returns at once."""
        for choice, output in enumerate(outputs):
            self._outputs.add(output)
            self._thread.submit(self._generate, output, choice)

    def cancel(self, outputs: Iterable[RequestOutput]) -> None:
        """Stop generating *outputs*, at the next token; returns at once."""
        for output in outputs:
            output.finish("cancelled")

    def close(self) -> None:
        """Fail what is not finished, and wait for the thread."""
        for output in list(self._outputs):
            output.finish("lost", "this model was closed")
        self._thread.shutdown()

    def _generate(self, output: RequestOutput, choice: int) -> None:
        try:
            if not output.finished.is_set():
                self._continue(output, choice)
        except Exception as error:  # noqa: BLE001  # whatever it is, the client has to hear of it
            output.finish("failed", f"transformers: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        finally:
            self._outputs.discard(output)

    def _continue(self, output: RequestOutput, choice: int) -> None:
        import torch

        request = output.request
        logits: list[torch.Tensor] = []  # of the last token
        ends = torch.tensor(self._ends, dtype=torch.long, device=self._model.device)

        def keep(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            logits[:] = [scores[0]]
            return scores.index_fill(1, ends, -torch.inf) if request.ignore_eos else scores

        def push(ids: torch.Tensor, _scores: object, **_: object) -> torch.Tensor:
            token, logprobs = int(ids[0, -1]), []
            if request.logprobs is not None:
                logprobs = [token_logprobs(logits[0].float().cpu().numpy(), token, request.logprobs)]
            output.push([token], self._ends, logprobs)
            return torch.tensor([output.finished.is_set()], device=ids.device)

        sampling = {"temperature": max(float(request.temperature), LEAST_TEMPERATURE)}
        sampling |= {"top_p": float(request.top_p), "top_k": request.top_k}
        torch.manual_seed((request.seed + choice) % 2**63)
        while not output.finished.is_set():
            ids = torch.tensor([request.prompt + output.tokens], device=self._model.device)
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self._most(ids.shape[1], request.max_tokens - len(output.tokens)),
                do_sample=request.temperature > 0,
                stopping_criteria=[push],
                # It comes before temperature, top_k and top_p, so it sees the model's own logits.
                logits_processor=[keep],
                **(sampling if request.temperature else {}),
            )

    def _most(self, length: int, wanted: int) -> int:
        """Return how many of the *wanted* tokens to generate at once after *length* others.

        Where an answer crosses the limit of LongRoPE, `generate` of transformers 5.17 loses its whole context.
        """
        return min(wanted, self._rope_limit + 1 - length) if length <= self._rope_limit else wanted
