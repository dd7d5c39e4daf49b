"""The wrapper of the source document, on the current API of onnxruntime-genai.

It answers the first row of its input, with og's tokenizer and og's default number of threads. The measurements add two
things: model_config may set the threads, and a lock lets calls run one at a time. MLflow loads this file as code.
"""

import json
import threading
from collections.abc import Iterator
from typing import Any

import mlflow
import onnxruntime_genai as og
import pandas as pd
from mlflow.pyfunc.model import PythonModel, PythonModelContext


class DocumentWrapper(PythonModel):
    """Artifact "onnx": the model folder. model_config: threads (0: og's own default), max_tokens."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load model and tokenizer."""
        options: dict[str, Any] = context.model_config or {}
        config = og.Config(context.artifacts["onnx"])
        if threads := options.get("threads"):
            session = {"intra_op_num_threads": threads}
            config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.max_tokens = options.get("max_tokens", 64)
        self.model = og.Model(config)
        self.tokenizer = og.Tokenizer(self.model)
        self.lock = threading.Lock()

    def predict(
        self,
        context: PythonModelContext | None,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> str:
        """Return the answer to the first prompt."""
        return str(self.tokenizer.decode(list(self.tokens(model_input["prompt"][0], self.max_tokens))))

    def tokens(self, prompt: str, max_tokens: int) -> Iterator[int]:
        """Yield the tokens of the answer to *prompt* as they come."""
        with self.lock:
            ids = self.tokenizer.encode(prompt)
            params = og.GeneratorParams(self.model)
            params.set_search_options(max_length=len(ids) + max_tokens, do_sample=False)
            generator = og.Generator(self.model, params)
            generator.append_tokens(ids)
            while not generator.is_done():
                generator.generate_next_token()
                yield int(generator.get_next_tokens()[0])


mlflow.models.set_model(DocumentWrapper())
