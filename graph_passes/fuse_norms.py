"""Fuse RMSNorm with the preceding residual addition, for onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir import tape
from onnxscript.rewriter.ort_fusions.rms_normalization import fuse_rms_normalization
from onnxscript.rewriter.ort_fusions.skip_normalization import fuse_skip_rms_normalization

__all__ = ["FuseSkipRmsNormPass"]


class FuseSkipRmsNormPass(ir.passes.InPlacePass):
    """Replace ``RMSNorm(a + b)`` by ``com.microsoft::SkipSimplifiedLayerNormalization``.

    The fusion is onnxscript's. Its first step turns every RMSNorm into SimplifiedLayerNormalization, which onnxruntime
    accepts in the standard domain but ONNX does not define. So norms that the second step does not fuse (the first norm
    follows no addition) are expanded into standard operators again.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        fused = 0
        if fuse_rms_normalization(model):
            fused = fuse_skip_rms_normalization(model)
            for node in list(model.graph):
                if node.op_type == "SimplifiedLayerNormalization" and node.domain == "":
                    _expand(model.graph, node)
        if fused:
            model.opset_imports.setdefault("com.microsoft", 1)
        return ir.passes.PassResult(model, modified=fused > 0)


def _expand(graph: ir.Graph, node: ir.Node) -> None:
    x, scale = node.inputs[0], node.inputs[1]
    assert x is not None
    dtype = (x.dtype or ir.DataType.FLOAT).numpy()
    epsilon = node.attributes.get_float("epsilon", 1e-5)
    new = tape.Tape()
    square = new.op("Mul", [x, x])
    axes = new.op("Constant", [], {"value_ints": [-1]})
    mean = new.op("ReduceMean", [square, axes], {"keepdims": 1})
    offset = new.op("Constant", [], {"value": ir.tensor(np.asarray(epsilon, dtype=dtype))})
    shifted = new.op("Add", [mean, offset])
    rms = new.op("Sqrt", [shifted])
    normal = new.op("Div", [x, rms])
    result = new.op("Mul", [normal, scale])
    old = node.outputs[0]
    result.type, result.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], list(new.nodes), [old], [result])
