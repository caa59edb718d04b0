"""Add an input that limits logits to the last positions: prefill needs only those."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from graph_passes.patterns.linear import Linear, find_linears

__all__ = ["LOGITS_TO_KEEP", "KeepLogitsPass"]

LOGITS_TO_KEEP = "logits_to_keep"
"""Name of the input, as in transformers."""

_LAST = np.iinfo(np.int64).max
_ELEMENTWISE = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Tanh"})


class KeepLogitsPass(ir.passes.InPlacePass):
    """Add the input ``logits_to_keep``: int64 ``[1]``, how many last positions get logits; 0, the default, means all.

    The input has an initializer, so runtimes that do not know it may omit it. lm_head then reads
    ``hidden[:, -logits_to_keep:]``, where ``-0`` is the beginning. The graph does not change unless its first output is
    that of lm_head, at most scaled or capped.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        graph = model.graph
        head = _head(graph)
        if head is None or LOGITS_TO_KEEP in graph.initializers:
            return ir.passes.PassResult(model, modified=False)
        keep = ir.Value(
            name=LOGITS_TO_KEEP,
            shape=ir.Shape([1]),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.tensor(np.zeros(1, np.int64), name=LOGITS_TO_KEEP),
        )
        graph.inputs.append(keep)
        graph.register_initializer(keep)
        new = tape.Tape()
        constants = {name: ir.tensor(np.array([number])) for name, number in (("ends", _LAST), ("axes", 1))}
        ends, axes = (new.op("Constant", [], {"value": tensor}) for tensor in constants.values())
        last = new.op("Slice", [head.x, new.op("Neg", [keep]), ends, axes])
        last.type = head.x.type
        matmul = head.matmul
        graph.insert_before(matmul, list(new.nodes))
        matmul.replace_input_with(list(matmul.inputs).index(head.x), last)
        shape = graph.outputs[0].shape
        if shape is not None and shape.rank() == 3:
            graph.outputs[0].shape = ir.Shape([shape[0], "logits", shape[2]])
        return ir.passes.PassResult(model, modified=True)


def _head(graph: ir.Graph) -> Linear | None:
    """Return lm_head: the last linear layer before the first output."""
    if graph.outputs[0].name != "logits":
        return None
    linears = find_linears(graph)
    value: ir.Value | None = graph.outputs[0]
    while value is not None:
        if value in linears:
            return linears[value]
        node = value.producer()
        if node is None or node.domain != "" or node.op_type not in _ELEMENTWISE:
            return None
        value = next((v for v in node.inputs if v is not None and v.producer() is not None), None)
    return None
