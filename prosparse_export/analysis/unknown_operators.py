"""Find a graph's operators that the operator library does not implement."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime

from graph_passes.custom_ops import DOMAIN, format_in, names
from graph_passes.formats import FORMAT_SPECS, QUANT_GROUP, format_of
from graph_passes.function_bodies import function_proto
from prosparse_export.runtime.operator_library import register

__all__ = ["unknown_to_the_library"]


def unknown_to_the_library(model: onnx.ModelProto) -> list[str]:
    """Return the operators in the graph that the operator library does not implement.

    onnxruntime runs their function bodies without a warning, densely. So each operator is put into its own graph
    without the body, which opens only if the library implements the operator.
    """
    used = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})
    return [op for op in used if not _opens(op)]


def _opens(op: str) -> bool:
    if op not in names():
        return False
    inputs = list(function_proto(op).input)
    initializers = []
    for name in inputs[1:]:
        spec = FORMAT_SPECS[format_of(format_in(op), is_down=name == "w_down")]
        array = {
            "w": np.zeros((QUANT_GROUP, spec.stored_columns(QUANT_GROUP)), spec.dtype),
            "s": np.zeros((QUANT_GROUP, 1), np.float16),
            "b": np.zeros(QUANT_GROUP, np.float32),
        }[name[0]]
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        initializers.append(onnx.helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True))
    attributes = {} if op.startswith("Linear") else {"activation": "relu", "threshold": 0.0}
    node = onnx.helper.make_node(op, inputs, ["y"], domain=DOMAIN, **attributes)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "probe", [value("x", 1, [1, QUANT_GROUP])], [value("y", 1, None)], initializers
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(DOMAIN, 1)]
    probe = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    register(options)
    try:
        onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        if "not a registered" in str(error):
            return False
        raise
    return True
