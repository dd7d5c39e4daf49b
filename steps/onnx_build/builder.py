"""onnxruntime-genai's builder as a command that holds one matrix in fp32 at a time, where the builder itself holds all.

    python -m steps.onnx_build.builder -i CHECKPOINT -c CACHE (the others of onnxruntime_genai.models.builder)

The builder quantises the whole graph in one pass, for which all weights become fp32: at its peak it needs three times
a bf16 checkpoint. Its quantisers look at one matrix at a time, so a pass over a graph of a single MatMul gives the same
bytes. This command makes one such pass for each MatMul.

It reads what `completed_checkpoint` makes of the checkpoint. That is done here, not in the step: it takes transformers,
which takes seconds to import.
"""

import copy
import gc
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from steps import USUAL_THRESHOLD
from steps.onnx_build.source import completed_checkpoint
from steps.records.errors import StepError

if TYPE_CHECKING:
    import onnx_ir as ir
    from onnxruntime_genai.models.builder import Model as Builder

    QuantisationPass = Callable[[Builder], ir.Model]


REFUSED = 3
"""The exit code for a checkpoint that cannot be completed; the last line on stderr says why."""


def main() -> None:
    """Do what the builder's own command does, with a completed checkpoint."""
    from onnxruntime_genai.models import builder

    # The graphs are cycles, which hold their matrices until they are collected: 5 GB at Phi-3-mini's size.
    gc.set_threshold(*USUAL_THRESHOLD)
    builder.Model.to_nbits = one_by_one(builder.Model.to_nbits)
    checkpoint, cache = (sys.argv.index(option) + 1 for option in ("-i", "-c"))
    try:
        # In the cache, which the caller removes, however this process ends.
        sys.argv[checkpoint] = str(completed_checkpoint(Path(sys.argv[checkpoint]), Path(sys.argv[cache]) / "source"))
    except StepError as error:
        print(error, file=sys.stderr)
        sys.exit(REFUSED)
    runpy.run_module(builder.__name__, run_name="__main__")


def one_by_one(quantise: "QuantisationPass") -> "QuantisationPass":
    """Return a pass with the same result as *quantise* that holds one matrix in fp32 at a time.

    Both take a builder that has the graph in fp32, and return the model with its MatMuls quantised.
    """

    def quantise_one_by_one(builder: "Builder") -> "ir.Model":
        for node in list(builder.model.graph):
            if node.op_type == "MatMul" and node.inputs[1].const_value is not None:
                part = copy.copy(builder)
                part.model = _model_of(node, builder.model)
                (quantised,) = quantise(part).graph
                if quantised.op_type != node.op_type:
                    _replace(node, quantised, builder)
        return builder.model  # type: ignore[no-any-return]  # the builder has no types

    return quantise_one_by_one


def _model_of(node: "ir.Node", model: "ir.Model") -> "ir.Model":
    """Return a model of the MatMul *node* of *model* alone."""
    import onnx_ir as ir

    values = [value for value in (*node.inputs, *node.outputs) if value]
    left, right, output = (ir.Value(name=v.name, type=v.type, shape=v.shape, const_value=v.const_value) for v in values)
    matmul = ir.Node("", "MatMul", [left, right], outputs=[output], name=node.name)
    imports = dict(model.graph.opset_imports)
    graph = ir.Graph([left], [output], nodes=[matmul], initializers=[right], opset_imports=imports, name="part")
    return ir.Model(graph, ir_version=model.ir_version)


def _replace(node: "ir.Node", quantised: "ir.Node", builder: "Builder") -> None:
    """Let *node*, of the builder's graph, become *quantised*, and drop its fp32 weights where nothing else has them."""
    import onnx_ir as ir

    activations, weights = node.inputs
    inputs = [activations]
    for value in quantised.inputs[1:]:
        if value and value.const_value:
            # A copy, because a part of a protobuf message keeps the whole message in memory, with the fp32 weights.
            tensor = ir.Tensor(value.const_value.numpy().copy(), dtype=value.const_value.dtype, name=value.name)
            # By name, because the embedding may refer to the weights of the head already.
            builder.make_initializer(tensor, value.name)
        inputs.append(builder.make_value(value.name if value else ""))
    new = ir.Node(quantised.domain, quantised.op_type, inputs, quantised.attributes.values(), name=quantised.name)
    ir.convenience.replace_nodes_and_values(builder.model.graph, node, [node], [new], node.outputs, new.outputs)
    if weights and weights.name and not weights.uses():
        del builder.model.graph.initializers[weights.name]
        del builder.values[weights.name]


if __name__ == "__main__":
    main()
