"""The operators of domain ``com.prosparse``: their names, inputs and ONNX function bodies.

A body is the operator's specification. It travels in every model that uses the operator, so
that an onnxruntime without our library inlines it and computes the same thing densely, and it
is the oracle that the kernels are tested against. docs/reference/operators.md describes each operator.
"""

from __future__ import annotations

import functools
from typing import Literal

import onnx
import onnx.parser
import onnx_ir as ir

__all__ = [
    "DOMAIN",
    "FFN_FORMATS",
    "FORMATS",
    "GATED_ACTIVATIONS",
    "OPSET",
    "OPSET_OF_STRINGS",
    "PLAIN_ACTIVATIONS",
    "QUANT_BLOCK",
    "VERSION",
    "FfnFormat",
    "Format",
    "OpsetError",
    "format_in",
    "format_of",
    "function",
    "function_proto",
    "is_quantized",
    "linear",
    "names",
    "sparse_ffn",
    "sparse_gated_ffn",
]

DOMAIN = "com.prosparse"
VERSION = 1
OPSET = 20
"""The ai.onnx opset of the bodies, the one that the exporter emits. onnxruntime inlines a body
only when its opset is the model's own, so a model of another opset needs bodies of that opset."""

OPSET_OF_STRINGS = 19
"""The first opset whose Equal compares strings. A body of an older one is stated for one activation."""

Format = Literal["f32", "f16", "bf16", "i8", "i4"]
"""How a matrix is stored: in the checkpoint's float type, or as integers with scales."""
FORMATS: tuple[Format, ...] = ("f32", "f16", "bf16", "i8", "i4")
FfnFormat = Literal["f32", "f16", "bf16", "i8", "i4", "i4i8"]
"""How a feed-forward block's matrices are: all in one format, or i4i8: down_proj in i8 and the others in i4."""
FFN_FORMATS: tuple[FfnFormat, ...] = (*FORMATS, "i4i8")
QUANT_BLOCK = 32
"""Columns of an i8 or i4 matrix that share one scale."""


class OpsetError(ValueError):
    """An operator has no body in such an opset."""


def format_of(weights: FfnFormat, *, is_down: bool) -> Format:
    """Return how one matrix of a block is stored: down_proj, or another. Outside blocks i4i8 is i4."""
    if weights == "i4i8":
        return "i8" if is_down else "i4"
    return weights


def is_quantized(weights: str) -> bool:
    """Tell whether a format, a block's too, is integers with scales."""
    return weights in ("i8", "i4", "i4i8")


def format_in(op: str) -> FfnFormat:
    """Return the format in an operator's name."""
    return max((f for f in FFN_FORMATS if op.endswith(f.upper())), key=len)  # BF16 ends with F16 too, I4I8 with I8


def sparse_gated_ffn(weights: FfnFormat) -> str:
    """Return the name of the gated operator with such weights."""
    return f"SparseGatedFFN{weights.upper()}"


def sparse_ffn(weights: FfnFormat) -> str:
    """Return the name of the operator without a gate with such weights."""
    return f"SparseFFN{weights.upper()}"


def linear(weights: Format) -> str:
    """Return the name of the dense product with such weights."""
    return f"Linear{weights.upper()}"


def names() -> tuple[str, ...]:
    """Return the names of all operators."""
    blocks = tuple(kind(weights) for kind in (sparse_gated_ffn, sparse_ffn) for weights in FFN_FORMATS)
    return (*blocks, *(linear(weights) for weights in FORMATS))


PLAIN_ACTIVATIONS = frozenset({"relu", "relu2", "fatrelu"})
GATED_ACTIVATIONS = PLAIN_ACTIVATIONS | {"drelu", "silu"}

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

_FFN_OUTPUT = """
  y_linear = MatMul (%s, m_down)
  y = Add (y_linear, b_down)
"""

_GATED = f"""
  z_linear = MatMul (x, m_gate_t)
  z = Add (z_linear, b_gate)
  {_ACTIVATE}
  u_linear = MatMul (x, m_up_t)
  u = Add (u_linear, b_up)
  drelu = Constant <value_string = "drelu"> ()
  is_drelu = Equal (kind, drelu)
  u_inactive = LessOrEqual (u, zero)
  u_rectified = Where (u_inactive, zero, u)
  v = Where (is_drelu, u_rectified, u)
  h = Mul (active, v)
  {_FFN_OUTPUT % "h"}
"""

_PLAIN = f"""
  z_linear = MatMul (x, m_up_t)
  z = Add (z_linear, b_up)
  {_ACTIVATE}
  {_FFN_OUTPUT % "active"}
"""

_LINEAR = """
  y_linear = MatMul (x, m_t)
  y = Add (y_linear, b)
"""

_ACTIVATE_ONE = """
  zero = Constant <value_float = 0.0> ()
  t = Constant <value_float: float = @threshold> ()
  inactive = LessOrEqual (z, t)
  rectified = Where (inactive, zero, z)
  active = %s
"""

# By magnitude: every other activation would pay for its Exp, so a body is stated for silu or for the others.
_ACTIVATE_SILU = """
  zero = Constant <value_float = 0.0> ()
  one = Constant <value_float = 1.0> ()
  t = Constant <value_float: float = @threshold> ()
  minus_z = Neg (z)
  power = Exp (minus_z)
  divisor = Add (one, power)
  silu = Div (z, divisor)
  size = Abs (silu)
  inactive = LessOrEqual (size, t)
  active = Where (inactive, zero, silu)
"""

# The matrix as float32, [rows, columns of x]: w and, quantized, s are inputs.
_AS_FLOAT = "m{0} = Cast <to = 1> (w{0})\n"
_SCALES = """
  s{0}_float = Cast <to = 1> (s{0})
  s{0}_columns = Unsqueeze (s{0}_float, last_axis)
  s{0}_blocks = Expand (s{0}_columns, block_shape)
  s{0}_padded = Reshape (s{0}_blocks, row_shape)
  s{0}_each = Slice (s{0}_padded, start, d_in, column_axis)
"""
_DEQUANTIZE = {
    "i8": _SCALES + "q{0} = Cast <to = 1> (w{0})\nm{0} = Mul (q{0}, s{0}_each)\n",
    "i4": _SCALES
    + """
  even{0} = BitwiseAnd (w{0}, fifteen)
  odd{0} = BitShift <direction = "RIGHT"> (w{0}, four)
  even{0}_column = Unsqueeze (even{0}, last_axis)
  odd{0}_column = Unsqueeze (odd{0}, last_axis)
  columns{0} = Concat <axis = -1> (even{0}_column, odd{0}_column)
  padded{0} = Reshape (columns{0}, row_shape)
  unsigned{0} = Slice (padded{0}, start, d_in, column_axis)
  unsigned{0}_float = Cast <to = 1> (unsigned{0})
  q{0} = Sub (unsigned{0}_float, eight)
  m{0} = Mul (q{0}, s{0}_each)
""",
}
_QUANTIZED_CONSTANTS = f"""
  d_in = Shape <start = -1> (x)
  start = Constant <value_ints = [0]> ()
  last_axis = Constant <value_ints = [-1]> ()
  column_axis = Constant <value_ints = [1]> ()
  row_shape = Constant <value_ints = [0, -1]> ()
  block_shape = Constant <value_ints = [1, 1, {QUANT_BLOCK}]> ()
"""
_I4_CONSTANTS = """
  fifteen = Constant <value = uint8 {15}> ()
  four = Constant <value = uint8 {4}> ()
  eight = Constant <value_float = 8.0> ()
"""


# Oldest opsets: Cast to bfloat16 and Unsqueeze with an axes input; Shape with a start.
_OLDEST = {"f32": 13, "f16": 13, "bf16": 13, "i8": 15, "i4": 15}
# The same digits by arithmetic: BitwiseAnd is new in opset 18, and OpenVINO 2026.4 gives other numbers for it.
_I4_BY_ARITHMETIC = """
  bytes{0} = Cast <to = 6> (w{0})
  odd{0} = Div (bytes{0}, sixteen)
  high{0} = Mul (odd{0}, sixteen)
  even{0} = Sub (bytes{0}, high{0})
"""


def _for_one_activation(core: str, activation: str) -> str:
    """Return ``core`` without strings."""
    square = "Mul (rectified, rectified)" if activation == "relu2" else "Identity (rectified)"
    one = _ACTIVATE_SILU if activation == "silu" else _ACTIVATE_ONE % square
    lines = core.replace(_ACTIVATE, one).splitlines()
    lines = [line for line in lines if "drelu" not in line or "Where" in line]
    taken = "Identity (u_rectified)" if activation == "drelu" else "Identity (u)"
    return "\n".join(f"  v = {taken}" if "is_drelu" in line else line for line in lines) + "\n"


def _body(name: str, opset: int, activation: str) -> str:
    weights = format_in(name)
    kind = name.removesuffix(weights.upper())
    matrices, core, attributes = {
        "SparseGatedFFN": (("_gate", "_up", "_down"), _GATED, "<activation, threshold>"),
        "SparseFFN": (("_up", "_down"), _PLAIN, "<activation, threshold>"),
        "Linear": (("",), _LINEAR, ""),
    }[kind]
    formats = [format_of(weights, is_down=matrix == "_down") for matrix in matrices]
    oldest = max(_OLDEST[f] for f in formats)
    if opset < oldest:
        raise OpsetError(f"the model's opset is {opset}: expected {oldest} or newer")
    dequantize, constants = _DEQUANTIZE, _I4_CONSTANTS
    if activation:
        _, halves, rest = _DEQUANTIZE["i4"].partition("  even{0}_column")
        dequantize = {"i8": _DEQUANTIZE["i8"], "i4": _SCALES + _I4_BY_ARITHMETIC + halves + rest}
        constants += "sixteen = Constant <value = int32 {16}> ()\n"
        core = _for_one_activation(core, activation)
    quantized = is_quantized(weights)
    inputs = ["x"]
    lines = [_QUANTIZED_CONSTANTS if quantized else "", constants if "i4" in formats else ""]
    for matrix, stored in zip(matrices, formats, strict=True):
        inputs += [f"w{matrix}", *([f"s{matrix}"] if quantized else []), f"b{matrix}"]
        if weights == "f32":
            core = core.replace("m_down)", "w_down)")
        else:
            lines.append(dequantize.get(stored, _AS_FLOAT).format(matrix))
        if matrix != "_down":
            lines.append(f"m{matrix}_t = Transpose <perm = [1, 0]> ({'w' if weights == 'f32' else 'm'}{matrix})")
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n{name} {attributes} ({", ".join(inputs)}) => (y)'
    return head + "\n{\n" + "\n".join(lines) + core + "}\n"


@functools.cache
def _parsed(name: str, opset: int, activation: str) -> bytes:
    body: bytes = onnx.parser.parse_function(_body(name, opset, activation)).SerializeToString()
    return body


def function_proto(
    name: str, opset: int = OPSET, activation: str = "", *, without_strings: bool = False
) -> onnx.FunctionProto:
    """Return the body of operator ``name`` as a new protobuf message.

    Args:
        name: one of `names`.
        opset: ai.onnx opset that the body is stated in; every operator used has had one meaning
            for these inputs since the opset that brought it.
        activation: the one activation that a body without strings has.
        without_strings: state it for ``activation`` alone; always so up to opset 18, which cannot compare strings, and
            for silu.

    Raises:
        KeyError: no operator has this name.
        OpsetError: the body cannot be stated in ``opset``.
    """
    if name not in names():
        raise KeyError(name)
    without_strings = without_strings or activation == "silu"
    if name.startswith("Linear"):
        activation = "none" if without_strings else ""  # for runtimes without strings, digits by arithmetic too
    elif opset >= OPSET_OF_STRINGS and not without_strings:
        activation = ""
    elif not activation:
        raise OpsetError(f"opset {opset} cannot compare strings: expected {OPSET_OF_STRINGS} or newer")
    return onnx.FunctionProto.FromString(_parsed(name, opset, activation))


def function(name: str, opset: int = OPSET, activation: str = "", *, without_strings: bool = False) -> ir.Function:
    """Return the body of operator ``name`` as a new ``onnx_ir.Function``; see `function_proto`."""
    return ir.serde.deserialize_function(function_proto(name, opset, activation, without_strings=without_strings))
