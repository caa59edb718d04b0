"""Decompose the operators of custom_ops.py into standard ONNX."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common

from graph_passes import custom_ops, function_bodies

__all__ = ["InlineOperatorsPass"]


class InlineOperatorsPass(ir.passes.InPlacePass):
    """Replace each operator of domain ``com.prosparse`` by its body, for runtimes without function support.

    The bodies are in their portable form (function_bodies.py). Weights keep their storage format: integers with scales
    stay integers with scales.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        opset = model.opset_imports.get("", custom_ops.OPSET)
        found = [node for node in model.graph if node.domain == custom_ops.DOMAIN]
        for node in found:
            activation = node.attributes.get_string("activation", "") or ""
            node.overload = activation or "linear"  # never "", whose function is removed below
            body = function_bodies.function(node.op_type, opset, activation, portable=True)
            body.overload = node.overload
            model.functions[body.identifier()] = body
        if found:
            for node in found:
                model.functions.pop((node.domain, node.op_type, ""), None)
            common.InlinePass(lambda function: function.domain == custom_ops.DOMAIN)(model)
            model.opset_imports.pop(custom_ops.DOMAIN, None)
        return ir.passes.PassResult(model, modified=bool(found))
