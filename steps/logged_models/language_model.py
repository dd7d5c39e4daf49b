"""A loaded model as a language model: from text to token ids, and from token ids to logits.

Each flavour reads text with its own code: the transformers flavour with transformers' tokenizer, an ONNX model with the
wrapper's. So a comparison of token ids compares two readers, not one reader with itself.
In the process of a `candidate`: call `loaded.run(function, loaded.folder, ...)`; *function* calls `language_model`.
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
from steps.wrappers.onnx.cpus import usable_cpus
from steps.wrappers.onnx.tokenizer import ChatTokenizer

Logits = npt.NDArray[np.float32]
Message = Mapping[str, str]


class LanguageModel(ABC):
    """The very weights and the tokenizer of a logged model."""

    @abstractmethod
    def logits(self, tokens: Sequence[int]) -> Logits:
        """Return the logits after each of *tokens*, one sequence: [positions, vocabulary].

        They take 4 bytes of memory for each token and entry of the vocabulary.
        """

    def logits_of(self, sequences: Sequence[Sequence[int]]) -> list[Logits]:
        """Return the logits of each of *sequences*, computed as one batch if the model can do so."""
        return [self.logits(tokens) for tokens in sequences]

    @property
    @abstractmethod
    def context(self) -> int:
        """The most tokens of one sequence."""

    @property
    @abstractmethod
    def prefix(self) -> int:
        """The id to put before a text at the beginning of a sequence: BOS, or EOS if there is no BOS.

        Raises StepError when the tokenizer has neither.
        """

    @abstractmethod
    def render(self, messages: Sequence[Message]) -> str:
        """Return *messages* as the prompt that the chat template makes of them, ready for an answer."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of *text*; no special tokens are added, because a chat template writes its own BOS."""

    @property
    @abstractmethod
    def before_text(self) -> list[int]:
        """The special tokens that the tokenizer puts before any text: BOS, or none."""

    def chat(self, messages: Sequence[Message], continuation: str) -> tuple[list[int], int]:
        """Return the ids of *messages* and of *continuation*, the answer, and the position where the answer begins.

        That is the first id that the answer adds or changes.
        """
        prompt = self.render(messages)
        # Encoded together: alone, an answer may begin with another token than after its prompt.
        asked, whole = self.encode(prompt), self.encode(prompt + continuation)
        pairs = zip(asked, whole, strict=False)
        return whole, next((at for at, (one, other) in enumerate(pairs) if one != other), min(len(asked), len(whole)))

    def text(self, text: str) -> tuple[list[int], list[int]]:
        """Return the special tokens before any text, and the ids of *text*."""
        return self.before_text, self.encode(text)


class TorchModel(LanguageModel):
    """A model of the transformers flavour: the weights that MLflow has loaded, and transformers' own tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:  # noqa: ANN401  transformers has no types
        self._model, self._tokenizer = model, tokenizer

    def logits(self, tokens: Sequence[int]) -> Logits:
        """See LanguageModel."""
        return self.logits_of([tokens])[0]

    def logits_of(self, sequences: Sequence[Sequence[int]]) -> list[Logits]:
        """See LanguageModel: one batch."""
        import torch

        # Padded on the right: attention is causal, so no earlier position sees the padding, and no mask is needed.
        longest = max(map(len, sequences))
        padded = [[*tokens, *[0] * (longest - len(tokens))] for tokens in sequences]
        with torch.inference_mode():
            logits = self._model(torch.tensor(padded, device=self._model.device), use_cache=False).logits
            return [
                np.asarray(rows[: len(tokens)].float().cpu().numpy(), dtype=np.float32)
                for rows, tokens in zip(logits, sequences, strict=True)
            ]

    @property
    def context(self) -> int:
        """See LanguageModel."""
        return int(self._model.config.max_position_embeddings)

    @property
    def prefix(self) -> int:
        """See LanguageModel."""
        ids = (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        return _first_known(*ids)

    def render(self, messages: Sequence[Message]) -> str:
        """See LanguageModel."""
        chat = [dict(message) for message in messages]
        return str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))

    def encode(self, text: str) -> list[int]:
        """See LanguageModel."""
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    @property
    def before_text(self) -> list[int]:
        """See LanguageModel."""
        return list(self._tokenizer("", add_special_tokens=True).input_ids)


class OnnxModel(LanguageModel):
    """The folder of an ONNX model, run by onnxruntime-genai, whatever its precision and device."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._chat = ChatTokenizer(folder)
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    @functools.cached_property
    def _model(self) -> Any:  # noqa: ANN401  onnxruntime-genai has no types
        # Loaded for the first logits, because token ids need no weights.
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

    @property
    def prefix(self) -> int:
        """See LanguageModel."""
        tokens = (self._chat.named_tokens.get(name) for name in ("bos_token", "eos_token"))
        return _first_known(*(self._tokenizer.token_to_id(token) if token else None for token in tokens))

    def render(self, messages: Sequence[Message]) -> str:
        """See LanguageModel."""
        return self._chat.render([dict(message) for message in messages])

    def encode(self, text: str) -> list[int]:
        """See LanguageModel."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    @property
    def before_text(self) -> list[int]:
        """See LanguageModel."""
        return list(self._tokenizer.encode("", add_special_tokens=True).ids)

    def logits(self, tokens: Sequence[int]) -> Logits:
        """See LanguageModel. Raises StepError when the ONNX file gives logits of the last position only."""
        import onnxruntime_genai as og

        params = og.GeneratorParams(self._model)
        params.set_search_options(batch_size=1, max_length=len(tokens), do_sample=False, num_beams=1)
        generator = og.Generator(self._model, params)
        generator.append_tokens(np.array([tokens], dtype=np.int32))
        logits = np.asarray(generator.get_output("logits")[0], dtype=np.float32)
        if len(logits) != len(tokens):
            msg = f"the ONNX model gives logits for {len(logits)} of {len(tokens)} positions: build it with all logits"
            raise StepError(msg)
        return logits

    def decode_rate(self, tokens: Sequence[int], new_tokens: int) -> float:
        """Return the tokens a second of greedy decoding, for *new_tokens* after *tokens*; the first is not timed."""
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


def checkpoint_tokenizer(folder: Path) -> Tokenizer | None:
    """Return the tokenizer that the checkpoint's own tokenizer.json describes, or None where *folder* has none.

    *folder* is a logged model of the transformers flavour. `model/tokenizer.json` is the checkpoint's file, byte for
    byte; `components/tokenizer` is what transformers made of it.
    """
    file = folder / "model" / "tokenizer.json"
    if not file.is_file():
        return None
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _first_known(*ids: int | None) -> int:
    """Return the first of *ids* that is not None. Raises StepError when all are."""
    found = next((each for each in ids if each is not None), None)
    if found is None:
        msg = "the tokenizer has neither a BOS nor an EOS token: the first token of a text cannot be predicted"
        raise StepError(msg)
    return found


_models: dict[Path, LanguageModel] = {}
"""The models of this process, by folder: a second call finds what the first one loaded."""


def language_model(model: PyFuncModel, folder: Path) -> LanguageModel:
    """Return the logged model that was loaded from *folder* as a language model; the same one every time.

    A model of the transformers flavour shares the weights of *model*. An ONNX model is loaded a second time, because
    the wrapper runs its own copy in another process. Raises StepError for any other model.
    """
    if folder not in _models:
        _models[folder] = _language_model(model, folder)
    return _models[folder]


def _language_model(model: PyFuncModel, folder: Path) -> LanguageModel:
    flavours = Model.load(str(folder)).flavors
    if "transformers" in flavours:
        pipeline = model.get_raw_model()
        return TorchModel(pipeline.model, pipeline.tokenizer)
    onnx = flavours["python_function"].get("artifacts", {}).get("onnx")
    if onnx is None:
        msg = f"the model in {folder} is neither of the transformers flavour nor has an artifact onnx: no logits"
        raise StepError(msg)
    return OnnxModel(folder / onnx["path"])
