"""Find a graph's operators that the operator library does not implement."""

from __future__ import annotations

import onnx

from graph_passes.custom_ops import DOMAIN
from prosparse_export.runtime.operator_library import library_info

__all__ = ["unknown_to_the_library"]


def unknown_to_the_library(model: onnx.ModelProto) -> list[str]:
    """Return the operators in the graph that the operator library does not implement.

    onnxruntime runs their function bodies without a warning, densely.
    """
    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    return sorted(used - set(library_info().operators))
