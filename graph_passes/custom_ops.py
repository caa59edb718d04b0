"""The operators of domain ``com.prosparse``: their names, inputs and ONNX function bodies.

A body is the operator's specification. It travels in every model that uses the operator, so
that an onnxruntime without our library inlines it and computes the same thing densely, and it
is the oracle that the kernels are tested against. docs/custom_ops.md describes each operator.
"""

from __future__ import annotations

import functools

import onnx
import onnx.parser
import onnx_ir as ir

__all__ = [
    "DOMAIN",
    "GATED_ACTIVATIONS",
    "OPSET",
    "PLAIN_ACTIVATIONS",
    "SPARSE_FFN_F32",
    "SPARSE_GATED_FFN_F32",
    "VERSION",
    "function",
    "function_proto",
]

DOMAIN = "com.prosparse"
VERSION = 1
OPSET = 20
"""The ai.onnx opset of the bodies, the one that the exporter emits. onnxruntime inlines a body
only when its opset is the model's own, so a model of another opset needs bodies of that opset."""

SPARSE_GATED_FFN_F32 = "SparseGatedFFNF32"
SPARSE_FFN_F32 = "SparseFFNF32"

PLAIN_ACTIVATIONS = frozenset({"relu", "relu2", "fatrelu"})
GATED_ACTIVATIONS = PLAIN_ACTIVATIONS | {"drelu"}

# One rule for all activations: a neuron is inactive iff z <= threshold, so a NaN stays visible.
# `activation` is a string attribute, which a body can only read as a tensor: the comparisons
# with it are constants, and onnxruntime folds them when it has inlined the body.
_ACTIVATE = """
  zero = Constant <value_float = 0.0> ()
  one = Constant <value_float = 1.0> ()
  t = Constant <value_float: float = @threshold> ()
  kind = Constant <value_string: string = @activation> ()
  relu2 = Constant <value_string = "relu2"> ()
  is_relu2 = Equal (kind, relu2)
  inactive = LessOrEqual (z, t)
  rectified = Where (inactive, zero, z)
  factor = Where (is_relu2, rectified, one)
  active = Mul (rectified, factor)
"""

_BODIES = {
    SPARSE_GATED_FFN_F32: f"""
<domain: "{DOMAIN}", opset_import: ["" : %(opset)d]>
{SPARSE_GATED_FFN_F32} <activation, threshold>
    (x, w_gate, b_gate, w_up, b_up, w_down, b_down) => (y)
{{
  w_gate_t = Transpose <perm = [1, 0]> (w_gate)
  z_linear = MatMul (x, w_gate_t)
  z = Add (z_linear, b_gate)
  {_ACTIVATE}
  w_up_t = Transpose <perm = [1, 0]> (w_up)
  u_linear = MatMul (x, w_up_t)
  u = Add (u_linear, b_up)
  drelu = Constant <value_string = "drelu"> ()
  is_drelu = Equal (kind, drelu)
  u_inactive = LessOrEqual (u, zero)
  u_rectified = Where (u_inactive, zero, u)
  v = Where (is_drelu, u_rectified, u)
  h = Mul (active, v)
  y_linear = MatMul (h, w_down)
  y = Add (y_linear, b_down)
}}
""",
    SPARSE_FFN_F32: f"""
<domain: "{DOMAIN}", opset_import: ["" : %(opset)d]>
{SPARSE_FFN_F32} <activation, threshold>
    (x, w_up, b_up, w_down, b_down) => (y)
{{
  w_up_t = Transpose <perm = [1, 0]> (w_up)
  z_linear = MatMul (x, w_up_t)
  z = Add (z_linear, b_up)
  {_ACTIVATE}
  y_linear = MatMul (active, w_down)
  y = Add (y_linear, b_down)
}}
""",
}


@functools.cache
def _parsed(name: str, opset: int) -> bytes:
    body: bytes = onnx.parser.parse_function(_BODIES[name] % {"opset": opset}).SerializeToString()
    return body


def function_proto(name: str, opset: int = OPSET) -> onnx.FunctionProto:
    """Return the body of operator ``name`` as a new protobuf message.

    Args:
        name: ``SPARSE_GATED_FFN_F32`` or ``SPARSE_FFN_F32``.
        opset: ai.onnx opset that the body is stated in; every operator used has had one meaning
            for these inputs since opset 19 (Equal on strings).

    Raises:
        KeyError: no operator has this name.
    """
    return onnx.FunctionProto.FromString(_parsed(name, opset))


def function(name: str, opset: int = OPSET) -> ir.Function:
    """Return the body of operator ``name`` as a new ``onnx_ir.Function``; see `function_proto`."""
    return ir.serde.deserialize_function(function_proto(name, opset))
