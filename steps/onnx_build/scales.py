"""The scales of quantised weights, stored in 16 bits.

onnxruntime-genai's builder stores them in fp32, because onnxruntime wants them so beside activations in fp32. Each is
converted by a Cast in the graph, which onnxruntime computes once, when it loads the model: what it computes with, its
memory and its speed stay as they were. A weight in blocks of 32 takes half a bit less.
"""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper

from steps.onnx_build.external_data import MODEL, mapped, rewrite

QUANTISED = ("MatMulNBits", "GatherBlockQuantized")
"""The operators over quantised weights; the third input of each has the scales."""

MOST = 1 / 512
"""By which a scale may change, as a share of it. Rounding to 8 bits changes a weight by up to 1/254 of the largest."""


def halve_scales(folder: Path) -> int:
    """Store the scales of the model in *folder* in fp16; return the bytes that this saves, 0 if nothing is quantised.

    Scales that stand in fp16 already, in the graph itself, or beyond what fp16 can hold, stay as they are.
    """
    model = onnx.load(folder / MODEL, load_external_data=False)
    names = {node.input[2] for node in model.graph.node if node.op_type in QUANTISED}
    halves: dict[str, npt.NDArray[np.float16]] = {}
    for tensor in model.graph.initializer:
        if tensor.name in names and tensor.external_data and (half := _half(mapped(folder, tensor))) is not None:
            _cast(model, tensor)
            halves[tensor.name] = half
    return rewrite(folder, model, halves) if halves else 0


def _half(scales: npt.NDArray[Any]) -> npt.NDArray[np.float16] | None:
    """Return *scales* in fp16, or None where they are not in fp32 or one would change by more than MOST."""
    if scales.dtype != np.float32:
        return None
    with np.errstate(over="ignore"):  # infinity differs from every scale
        half = scales.astype(np.float16)
    return half if (np.abs(half - scales) <= np.abs(scales) * MOST).all() else None


def _cast(model: ModelProto, scales: TensorProto) -> None:
    """Let *scales* be fp16 under another name, and a node that has their own name convert them."""
    name = scales.name
    scales.name, scales.data_type = f"{name}_fp16", TensorProto.FLOAT16
    cast = helper.make_node("Cast", [scales.name], [name], name=f"{name}/Cast", to=TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
