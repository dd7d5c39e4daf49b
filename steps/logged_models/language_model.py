"""A loaded model as a language model: from token ids to logits, and from text to token ids.

In the process of a `candidate`: `loaded.run(function, loaded.folder, ...)`, where *function* asks `language_model`.
"""

import functools
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from mlflow.models import Model
from mlflow.pyfunc import PyFuncModel
from tokenizers import Tokenizer

from steps.records.errors import StepError
from steps.wrappers.onnx_chat import Text, usable_cpus

Logits = npt.NDArray[np.float32]
Message = Mapping[str, str]


class LanguageModel(ABC):
    """The very weights and the tokenizer of a logged model."""

    def __init__(self, tokenizer: Path) -> None:
        self._text = Text(tokenizer)
        self._tokenizer = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @abstractmethod
    def logits(self, tokens: Sequence[int]) -> Logits:
        """Return the logits after each of *tokens*, one sequence: [positions, vocabulary].

        Memory grows with the number of tokens: 4 bytes for each of them and each entry of the vocabulary.
        """

    @property
    @abstractmethod
    def context(self) -> int:
        """The most tokens of one sequence."""

    @property
    def prefix(self) -> int:
        """The id to read before a text that nothing else comes before: BOS, or EOS where there is no BOS."""
        named = self._text.named
        token = named.get("bos_token") or named.get("eos_token")
        found = self._tokenizer.token_to_id(token) if token else None
        if found is None:
            msg = "the tokenizer has neither a BOS nor an EOS token: a text's first token cannot be foretold"
            raise StepError(msg)
        return found

    def chat(self, messages: Sequence[Message], continuation: str) -> tuple[list[int], int]:
        """Return the ids of *messages*, as the chat template asks for an answer, and of *continuation*, the answer.

        Also where the answer begins: the position of the first id that the answer adds or changes.
        """
        prompt = self._text.render([dict(message) for message in messages])
        # Together: an answer that is encoded alone may begin with another token than after its prompt.
        asked, whole = self._encode(prompt), self._encode(prompt + continuation)
        pairs = zip(asked, whole, strict=False)
        return whole, next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(asked), len(whole)))

    def text(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids that the model expects before any text (BOS, or none), and those of *text*."""
        before: list[int] = self._tokenizer.encode("", add_special_tokens=True).ids
        return before, self._encode(text)

    def _encode(self, text: str) -> list[int]:
        # Without special tokens: where a chat begins with BOS, its template says so.
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


class TorchModel(LanguageModel):
    """A model of the transformers flavour: the weights that MLflow has loaded, in their dtype."""

    def __init__(self, model: Any, tokenizer: Path) -> None:  # noqa: ANN401  transformers has no types
        super().__init__(tokenizer)
        self._model = model

    def logits(self, tokens: Sequence[int]) -> Logits:
        """See LanguageModel."""
        import torch

        with torch.inference_mode():
            ids = torch.tensor([list(tokens)], device=self._model.device)
            return np.asarray(self._model(ids, use_cache=False).logits[0].float().cpu().numpy(), dtype=np.float32)

    @property
    def context(self) -> int:
        """See LanguageModel."""
        return int(self._model.config.max_position_embeddings)


class OnnxModel(LanguageModel):
    """The folder of an ONNX model, run by onnxruntime-genai, whatever its precision and device."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    @functools.cached_property
    def _model(self) -> Any:  # noqa: ANN401  onnxruntime-genai has no types
        # At the first logits: who needs token ids alone needs no weights.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime_genai as og

        config = og.Config(str(self._folder))
        session = {"intra_op_num_threads": usable_cpus()}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        return og.Model(config)

    @property
    def context(self) -> int:
        """See LanguageModel."""
        genai = json.loads((self._folder / "genai_config.json").read_text(encoding="utf-8"))
        return int(genai["model"]["context_length"])

    def logits(self, tokens: Sequence[int]) -> Logits:
        """See LanguageModel. Raises StepError when the ONNX file gives logits of the last position only."""
        import onnxruntime_genai as og

        params = og.GeneratorParams(self._model)
        params.set_search_options(batch_size=1, max_length=len(tokens), do_sample=False, num_beams=1)
        generator = og.Generator(self._model, params)
        generator.append_tokens(np.array([tokens], dtype=np.int32))
        logits = np.asarray(generator.get_output("logits")[0], dtype=np.float32)
        if len(logits) != len(tokens):
            msg = f"the ONNX model gives logits of {len(logits)} in {len(tokens)} positions: build it with all of them"
            raise StepError(msg)
        return logits

    def decode_rate(self, tokens: Sequence[int], new_tokens: int) -> float:
        """Return the tokens a second of *new_tokens* greedy ones after *tokens*, without the time to the first."""
        import onnxruntime_genai as og

        params = og.GeneratorParams(self._model)
        length = len(tokens) + new_tokens
        params.set_search_options(batch_size=1, min_length=length, max_length=length, do_sample=False, num_beams=1)
        generator = og.Generator(self._model, params)
        generator.append_tokens(np.array([tokens], dtype=np.int32))
        generator.generate_next_token()
        started = time.perf_counter()
        while not generator.is_done():
            generator.generate_next_token()
        return (new_tokens - 1) / (time.perf_counter() - started)


_models: dict[Path, LanguageModel] = {}
"""Of this process, by folder: what a second call needs is there."""


def language_model(model: PyFuncModel, folder: Path) -> LanguageModel:
    """Return the logged model that was loaded from *folder* as a language model; the same one every time.

    Of the transformers flavour it is *model*'s own weights; an ONNX model is loaded a second time, since the one inside
    the wrapper is in a process of the wrapper's. Raises StepError for any other model.
    """
    if folder not in _models:
        _models[folder] = _language_model(model, folder)
    return _models[folder]


def _language_model(model: PyFuncModel, folder: Path) -> LanguageModel:
    flavours = Model.load(str(folder)).flavors
    if "transformers" in flavours:
        return TorchModel(model.get_raw_model().model, folder / "components" / "tokenizer")
    onnx = flavours["python_function"].get("artifacts", {}).get("onnx")
    if onnx is None:
        msg = f"the model in {folder} is neither of the transformers flavour nor has an artifact onnx: no logits"
        raise StepError(msg)
    return OnnxModel(folder / onnx["path"])
