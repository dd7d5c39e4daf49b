"""The token embedding of an ONNX model, read from the 8 bits of its head, where the checkpoint ties the two.

onnxruntime-genai's builder shares a quantised table in int4 builds only. Beside an int8 head it writes the same weights
a second time, as fp32: four times the head's own bytes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from steps.onnx_build.external_data import MODEL, mapped, rewrite
from steps.records.errors import StepError

ROWS = 4096
"""Of a table that are compared at a time."""

UNSIGNED_ZERO = 128.0
"""What stands for 0 in 8 bits where an operator is given no zero points."""


@dataclass(frozen=True)
class TiedTable:
    """The nodes that hold one table twice: the Gather of token embeddings, and the MatMulNBits of the head."""

    embedding: NodeProto
    head: NodeProto
    block: int
    """Weights of the head that have one scale."""


def share_embedding(folder: Path) -> int:
    """Let the embedding of the model in *folder* read the weights of its 8-bit head; return the bytes that this saves.

    Writes the new data beside the old, then puts it in its place; no more than a few MB of weights are in memory.
    Raises StepError, and leaves the folder as it was, when the head has not 8 bits or the two tables differ.
    """
    model = onnx.load(folder / MODEL, load_external_data=False)
    tied = _tied_table(model)
    _require_same_weights(folder, model, tied)
    _read_from_head(model, tied)
    return rewrite(folder, model, {})


def _tied_table(model: ModelProto) -> TiedTable:
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    embeddings = [
        node
        for node in model.graph.node
        if node.op_type == "Gather" and node.input[0] in weights and node.input[1] == "input_ids"
    ]
    if len(embeddings) != 1:
        msg = f"the ONNX model has {len(embeddings)} unquantised embeddings, not one: nothing to share"
        raise StepError(msg)
    rows, columns = weights[embeddings[0].input[0]].dims
    for node in model.graph.node:
        size = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type == "MatMulNBits" and (size["N"], size["K"], size["bits"]) == (rows, columns, 8):
            if columns % size["block_size"]:
                msg = f"blocks of {size['block_size']} do not divide the embedding's {columns} columns: take a divisor"
                raise StepError(msg)
            return TiedTable(embeddings[0], node, size["block_size"])
    msg = f"the ONNX model has no 8-bit head of {rows} x {columns}, as its embedding is: build it with precision int8"
    raise StepError(msg)


def _require_same_weights(folder: Path, model: ModelProto, tied: TiedTable) -> None:
    """Raise StepError unless the head's weights, (q - zero) * scale for each block, are the embedding's to half a step.

    The formula and the shapes: MatMulNBits in onnxruntime's ContribOperators.md.
    """
    arrays = {tensor.name: mapped(folder, tensor) for tensor in model.graph.initializer if tensor.external_data}
    table = arrays[tied.embedding.input[0]]
    blocks = (len(table), -1, tied.block)
    head, scales, *zeros = (arrays[name] for name in tied.head.input[1:] if name)
    for at in range(0, len(table), ROWS):
        rows = slice(at, at + ROWS)
        step = scales.reshape(len(table), -1, 1)[rows]
        zero = zeros[0].reshape(len(table), -1, 1)[rows].astype(np.float32) if zeros else UNSIGNED_ZERO
        error = np.abs((head.reshape(blocks)[rows] - zero) * step - table.reshape(blocks)[rows])
        # Half a step by rounding; at the end of the range up to a whole one.
        if not (error <= np.abs(step) * 1.01).all():
            msg = "the checkpoint's embedding differs from its head: choose a recipe that does not share them"
            raise StepError(msg)


def _read_from_head(model: ModelProto, tied: TiedTable) -> None:
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    table = weights[tied.embedding.input[0]]
    packed, *scales = (name for name in tied.head.input[1:] if name)
    # The same bytes of the data file under a second name: the head wants them in blocks, the embedding in rows.
    rows = TensorProto()
    rows.CopyFrom(weights[packed])
    rows.name = f"{table.name}_shared"
    rows.dims[:] = table.dims
    shared = helper.make_node(
        "GatherBlockQuantized",
        [rows.name, tied.embedding.input[1], *scales],
        list(tied.embedding.output),
        name=tied.embedding.name,
        domain="com.microsoft",
        bits=8,
        block_size=tied.block,
        gather_axis=0,
        quantize_axis=1,
    )
    tied.embedding.CopyFrom(shared)
    model.graph.initializer.remove(table)
    model.graph.initializer.append(rows)
