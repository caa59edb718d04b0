"""Let the caller say for how many positions logits are wanted: prefill needs the last ones only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import tape

from graph_passes.patterns.linear import Linear, find_linears

__all__ = ["LOGITS_TO_KEEP", "KeepLogitsPass"]

LOGITS_TO_KEEP = "logits_to_keep"
"""Name of the input, transformers' own for the same thing."""

_LAST = np.iinfo(np.int64).max
_ELEMENTWISE = frozenset({"Add", "Cast", "Div", "Identity", "Mul", "Tanh"})


class KeepLogitsPass(ir.passes.InPlacePass):
    """Add the input ``logits_to_keep``: int64 ``[1]``, how many last positions get logits; 0, its default, for all.

    The input has an initializer, so runtimes that do not know it need not give it. lm_head then reads
    ``hidden[:, -logits_to_keep:]``, where ``-0`` is the beginning. A graph whose first output is no product with
    lm_head, but for scaling and capping, stays as it is.
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
        product = next(use.node for use in head.x.uses() if use.node in _behind(head.output))
        graph.insert_before(product, list(new.nodes))
        product.replace_input_with(list(product.inputs).index(head.x), last)
        shape = graph.outputs[0].shape
        if shape is not None and shape.rank() == 3:
            graph.outputs[0].shape = ir.Shape([shape[0], "logits", shape[2]])
        return ir.passes.PassResult(model, modified=True)


def _head(graph: ir.Graph) -> Linear | None:
    """Return the product that makes the logits: the last before the first output."""
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


def _behind(output: ir.Value) -> list[ir.Node]:
    """Return the node that makes ``output`` and, for a bias added to a product, the product."""
    last = output.producer()
    assert last is not None
    return [last, *(v.producer() for v in last.inputs if v is not None and v.producer() is not None)]  # type: ignore[list-item]
