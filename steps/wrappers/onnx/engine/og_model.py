"""The model's folder, loaded by onnxruntime-genai ("og"), and the generators made of it."""

import json
import os
from pathlib import Path
from typing import Any

PAD = -1
"""The id that pads prompts of a batch.

og takes the *last* pad tokens of a prompt for padding, and many models pad with a token that a prompt may end with.
No token has this id. ONNX looks up its embedding all the same, and the result is masked.
"""

LONG_ROPE_LIMIT = 4096
"""The tokens beyond which a Phi-3 with LongRoPE (Phi-3.5, Phi-3-128k, Phi-4-mini) has other positions, from the first.

The graph chooses by the length that it sees in a step. og knows the number and the models too: it computes a sequence
that is alone in its generator anew where an answer crosses the limit.
"""


class Refused(Exception):  # noqa: N818  # the request is wrong, not the engine
    """A sequence asks for something that og cannot do; the message says why."""


class OgModel:
    """og's model of a folder."""

    def __init__(self, folder: Path, threads: int) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime_genai as og  # slow; the server's process imports this file too, and does not need og

        genai = json.loads((folder / "genai_config.json").read_text(encoding="utf-8"))["model"]
        providers = genai["decoder"]["session_options"].get("provider_options", [])
        if any("cuda" in provider for provider in providers) and not og.is_cuda_available():
            msg = "this ONNX model was built for CUDA: it needs onnxruntime-genai-cuda and an NVIDIA GPU"
            raise Refused(msg)
        session = {"intra_op_num_threads": threads}
        config = og.Config(str(folder))
        config.overlay(json.dumps({"model": {"pad_token_id": PAD, "decoder": {"session_options": session}}}))
        self._og = og
        self._model = og.Model(config)
        self.context = int(genai["context_length"])
        # The longest sequence that may share a batch, be computed in chunks, and be rewound.
        switches = genai["type"] in ("phi3", "phimoe") and self.context > LONG_ROPE_LIMIT
        self.rope_limit = LONG_ROPE_LIMIT if switches else self.context
        ends = genai["eos_token_id"]
        self.end_ids = frozenset(ends if isinstance(ends, list) else [ends])
        states = {name for name in genai["decoder"]["inputs"] if name.startswith("past_")}
        # Layers with another state, such as LFM2's convolutions, read padding as text, and cannot be rewound.
        self.is_attention_only = states <= {"past_key_names", "past_value_names", "past_names"}

    def generator(self, sequences: int, length: int, json_schema: str | None = None) -> Any:  # noqa: ANN401
        """Return a greedy og generator of *sequences*, each with a KV cache of *length* tokens.

        Raises Refused if *json_schema* is not usable: what follows the name of its field.
        """
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(
            batch_size=sequences,
            max_length=length,  # otherwise og makes the KV cache as long as the model's context
            do_sample=False,  # whatever the model's folder says: `sampled` does that
            num_beams=1,
            min_length=0,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
        )
        try:
            if json_schema:
                params.set_guidance("json_schema", json_schema, False)
            return self._og.Generator(self._model, params)
        except RuntimeError as error:
            if not json_schema:
                raise
            msg = f"is not usable: {first_line(error)}"
            raise Refused(msg) from error


def first_line(error: Exception) -> str:
    """Return the message of *error* without og's trace."""
    return str(error).partition("\n")[0]
