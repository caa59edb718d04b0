"""ONNX function bodies of the operators in custom_ops.py.

A body specifies its operator. Every model carries the bodies of the operators that it uses, so an onnxruntime without
the operator library inlines them and computes the same result densely. The kernels are tested against them.

A body comes in two forms. The general form handles every activation by comparing the string attribute ``activation``.
The portable form is specialized to one activation and has no strings, for opsets and runtimes that lack them.
"""

from __future__ import annotations

import functools

import onnx
import onnx.parser
import onnx_ir as ir

from graph_passes.attention_body import attention_body
from graph_passes.custom_ops import (
    ATTENTION,
    DOMAIN,
    OPSET,
    accuracy_level,
    applies_rope,
    cache_format,
    format_in,
    names,
    without_format,
)
from graph_passes.formats import FORMAT_SPECS, QUANT_GROUP, FormatSpec, format_of
from graph_passes.rounded_activations import ROUNDING_CONSTANTS, rounded

__all__ = ["OPSET_WITH_STRINGS", "OpsetError", "function", "function_proto"]

OPSET_WITH_STRINGS = 19
"""First opset whose Equal compares strings. Older opsets get the portable form."""

_OLDEST_FLOAT, _OLDEST_QUANTIZED = 13, 15  # Cast to bfloat16 and Unsqueeze with an axes input; Shape with a start
_OLDEST_ATTENTION = _OLDEST_LEVEL_4 = 18  # ReduceMax with an axes input


class OpsetError(ValueError):
    """An operator's body cannot be expressed in an opset."""


# The rule is the same for all activations but silu: a neuron is inactive if z <= threshold, so NaN stays visible.
_RECTIFY = """
  zero = Constant <value_float = 0.0> ()
  t = Constant <value_float: float = @threshold> ()
  inactive = LessOrEqual (z, t)
  rectified = Where (inactive, zero, z)
"""
# `activation` is a string attribute, which a body can only read as a tensor. The comparisons with it are constants,
# and onnxruntime folds them after inlining.
_ACTIVATE_GENERAL = """
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
# silu is inactive by magnitude. In the general form every other activation would pay for its Exp.
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

_RECTIFY_UP = """
  u_inactive = LessOrEqual (u, zero)
  u_rectified = Where (u_inactive, zero, u)
"""
_UP_GENERAL = f"""
  drelu = Constant <value_string = "drelu"> ()
  is_drelu = Equal (kind, drelu)
  {_RECTIFY_UP}
  v = Where (is_drelu, u_rectified, u)
"""

_QUANTIZED_CONSTANTS = f"""
  d_in = Shape <start = -1> (x)
  start = Constant <value_ints = [0]> ()
  last_axis = Constant <value_ints = [-1]> ()
  column_axis = Constant <value_ints = [1]> ()
  row_shape = Constant <value_ints = [0, -1]> ()
  block_shape = Constant <value_ints = [1, 1, {QUANT_GROUP}]> ()
"""
_NIBBLE_CONSTANTS = """
  fifteen = Constant <value = uint8 {15}> ()
  four = Constant <value = uint8 {4}> ()
"""
_EIGHT = "eight = Constant <value_float = 8.0> ()\n"
_PORTABLE_NIBBLE_CONSTANTS = "sixteen = Constant <value = int32 {16}> ()\n"

# Each turns the inputs w{0} and, quantized, s{0} into the matrix m{0}: float32, [rows, columns of x].
_CAST = "m{0} = Cast <to = 1> (w{0})\n"
_SCALES = """
  s{0}_float = Cast <to = 1> (s{0})
  s{0}_columns = Unsqueeze (s{0}_float, last_axis)
  s{0}_blocks = Expand (s{0}_columns, block_shape)
  s{0}_padded = Reshape (s{0}_blocks, row_shape)
  s{0}_each = Slice (s{0}_padded, start, d_in, column_axis)
"""
_DEQUANTIZE_BYTES = """
  q{0} = Cast <to = 1> (w{0})
  m{0} = Mul (q{0}, s{0}_each)
"""
_SPLIT_NIBBLES = """
  even{0} = BitwiseAnd (w{0}, fifteen)
  odd{0} = BitShift <direction = "RIGHT"> (w{0}, four)
"""
# BitwiseAnd is new in opset 18, and OpenVINO 2026.4 computes it wrongly.
_SPLIT_NIBBLES_PORTABLE = """
  bytes{0} = Cast <to = 6> (w{0})
  odd{0} = Div (bytes{0}, sixteen)
  high{0} = Mul (odd{0}, sixteen)
  even{0} = Sub (bytes{0}, high{0})
"""
_UNPACK_NIBBLES = """
  even{0}_column = Unsqueeze (even{0}, last_axis)
  odd{0}_column = Unsqueeze (odd{0}, last_axis)
  columns{0} = Concat <axis = -1> (even{0}_column, odd{0}_column)
  padded{0} = Reshape (columns{0}, row_shape)
  field{0} = Slice (padded{0}, start, d_in, column_axis)
"""
_DEQUANTIZE_NIBBLES = """
  field{0}_float = Cast <to = 1> (field{0})
  q{0} = Sub (field{0}_float, eight)
  m{0} = Mul (q{0}, s{0}_each)
"""
_LOOK_UP_NIBBLES = """
  field{0}_place = Cast <to = 6> (field{0})
  q{0} = Gather <axis = 0> (levels, field{0}_place)
  m{0} = Mul (q{0}, s{0}_each)
"""


def _activate(activation: str) -> str:
    """Return what computes ``active`` from ``z``; an empty ``activation`` asks for the general form."""
    if not activation:
        return _ACTIVATE_GENERAL
    if activation == "silu":
        return _ACTIVATE_SILU
    result = "Mul (rectified, rectified)" if activation == "relu2" else "Identity (rectified)"
    return f"{_RECTIFY}  active = {result}\n"


def _up_factor(activation: str) -> str:
    """Return what computes ``v``, the factor of the gate, from ``u``."""
    if not activation:
        return _UP_GENERAL
    return f"{_RECTIFY_UP}  v = Identity ({'u_rectified' if activation == 'drelu' else 'u'})\n"


def _linear(x: str, matrix: str, bias: str, y: str) -> str:
    return f"  {y}_linear = MatMul ({x}, {matrix})\n  {y} = Add ({y}_linear, {bias})\n"


def _dequantize(matrix: str, spec: FormatSpec, *, portable: bool) -> str:
    if not spec.group:
        return _CAST.format(matrix)
    if spec.bits == 8:
        return (_SCALES + _DEQUANTIZE_BYTES).format(matrix)
    split = _SPLIT_NIBBLES_PORTABLE if portable else _SPLIT_NIBBLES
    values = _DEQUANTIZE_NIBBLES if spec.table is None else _LOOK_UP_NIBBLES
    return (_SCALES + split + _UNPACK_NIBBLES + values).format(matrix)


def _constants(specs: list[FormatSpec], *, portable: bool) -> str:
    lines = _QUANTIZED_CONSTANTS if any(spec.group for spec in specs) else ""
    if any(spec.bits == 4 for spec in specs):
        lines += _NIBBLE_CONSTANTS + (_PORTABLE_NIBBLE_CONSTANTS if portable else "")
    if any(spec.bits == 4 and spec.table is None for spec in specs):
        lines += _EIGHT
    table = next((spec.table for spec in specs if spec.table is not None), None)
    if table is not None:
        lines += f"levels = Constant <value_floats = [{', '.join(f'{level}.0' for level in table)}]> ()\n"
    return lines


def _body(name: str, opset: int, activation: str) -> str:
    """Return a body as ONNX text: in the portable form for ``activation``, or, if it is empty, in the general form."""
    if name in ATTENTION:
        return _attention(name, opset)
    kind, weights = without_format(name), format_in(name)
    matrices = {"SparseGatedFFN": ("_gate", "_up", "_down"), "SparseFFN": ("_up", "_down"), "Linear": ("",)}[kind]
    specs = [FORMAT_SPECS[format_of(weights, is_down=matrix == "_down")] for matrix in matrices]
    oldest = max(_OLDEST_QUANTIZED if spec.group else _OLDEST_FLOAT for spec in specs)
    rounds = accuracy_level(name) == 4
    oldest = _OLDEST_LEVEL_4 if rounds else oldest
    if opset < oldest:
        raise OpsetError(f"opset {opset} is too old; expected {oldest} or newer")
    inputs, lines = ["x"], [_constants(specs, portable=bool(activation))]
    x, near = "x", ""
    if rounds:
        lines += [ROUNDING_CONSTANTS, rounded("x")]
        x, near = "x_near", "_near"
    down = ""
    for matrix, spec in zip(matrices, specs, strict=True):
        inputs += [f"w{matrix}", *([f"s{matrix}"] if spec.group else []), f"b{matrix}"]
        is_float32 = spec.onnx_type == ir.DataType.FLOAT
        stored = f"w{matrix}" if is_float32 else f"m{matrix}"
        if not is_float32:
            lines.append(_dequantize(matrix, spec, portable=bool(activation)))
        if matrix == "_down":
            down = stored
        else:
            lines.append(f"  m{matrix}_t = Transpose <perm = [1, 0]> ({stored})\n")
    if kind == "Linear":
        lines.append(_linear(x, "m_t", "b", "y"))
    elif kind == "SparseFFN":
        lines += [_linear(x, "m_up_t", "b_up", "z"), _activate(activation)]
        lines += [rounded("active") if rounds else "", _linear(f"active{near}", down, "b_down", "y")]
    else:
        lines += [_linear(x, "m_gate_t", "b_gate", "z"), _activate(activation)]
        lines += [_linear(x, "m_up_t", "b_up", "u"), _up_factor(activation), "  h = Mul (active, v)\n"]
        lines += [rounded("h") if rounds else "", _linear(f"h{near}", down, "b_down", "y")]
    attributes = "" if kind == "Linear" else "<activation, threshold>"
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n{name} {attributes} ({", ".join(inputs)}) => (y)'
    return head + "\n{\n" + "".join(lines) + "}\n"


def _float_attention(*, rotary: bool) -> str:
    """Return attention over a cache in float32: onnxruntime's operator, so that it is as fast without our library."""
    return f"""
  y, present_key, present_value = com.microsoft.GroupQueryAttention <num_heads: int = @num_heads,
      kv_num_heads: int = @kv_num_heads, scale: float = @scale, local_window_size: int = @local_window_size{
        ", do_rotary = 1" if rotary else ""
    }> (qkv, , , past_key, past_value, seqlens_k, total_sequence_length{", cos, sin" if rotary else ""})
"""


def _attention(name: str, opset: int) -> str:
    if opset < _OLDEST_ATTENTION:
        raise OpsetError(f"opset {opset} is too old; expected {_OLDEST_ATTENTION} or newer")
    rotary, is_float = applies_rope(name), cache_format(name) == "F32"
    angles = ["cos", "sin"] if rotary else []
    inputs = ["qkv", "past_key", "past_value", "seqlens_k", "total_sequence_length", *angles]
    imports = f'"" : {opset}' + (', "com.microsoft" : 1' if is_float else "")
    return (
        f'<domain: "{DOMAIN}", opset_import: [{imports}]>\n{name} <num_heads, kv_num_heads, scale, '
        f"local_window_size> ({', '.join(inputs)}) => (y, present_key, present_value)\n{{"
        f"{_float_attention(rotary=rotary) if is_float else attention_body(rotary=rotary)}}}\n"
    )


@functools.cache
def _parsed(name: str, opset: int, activation: str) -> bytes:
    body: bytes = onnx.parser.parse_function(_body(name, opset, activation)).SerializeToString()
    return body


def function_proto(
    name: str, opset: int = OPSET, activation: str = "", *, portable: bool = False
) -> onnx.FunctionProto:
    """Return the body of operator ``name`` as a new protobuf message.

    Args:
        name: one of `custom_ops.names`.
        opset: ai.onnx opset of the body. onnxruntime inlines a body only if its opset is the model's. Every operator
            used means the same in all opsets that have it.
        activation: what the portable form is specialized to.
        portable: return the portable form. Opsets up to 18, which cannot compare strings, and silu always get it.

    Raises:
        KeyError: no operator has this name.
        OpsetError: the body cannot be expressed in ``opset``.
    """
    if name not in names():
        raise KeyError(name)
    portable = portable or activation == "silu"
    if without_format(name) == "Linear" or name in ATTENTION:
        activation = "none" if portable else ""
    elif opset >= OPSET_WITH_STRINGS and not portable:
        activation = ""
    elif not activation:
        raise OpsetError(f"opset {opset} cannot compare strings; expected {OPSET_WITH_STRINGS} or newer")
    return onnx.FunctionProto.FromString(_parsed(name, opset, activation))


def function(name: str, opset: int = OPSET, activation: str = "", *, portable: bool = False) -> ir.Function:
    """Return the body of operator ``name`` as a new ``onnx_ir.Function``; see `function_proto`."""
    return ir.serde.deserialize_function(function_proto(name, opset, activation, portable=portable))
