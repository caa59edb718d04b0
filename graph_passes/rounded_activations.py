"""The rounding of activations at accuracy level 4, as ONNX text for the function bodies.

Each token's groups of 32 values have a scale of their own, the largest magnitude / 127 and at least 2^-126. A value
becomes ``scale * integer``, with the integer rounded half to even. A group with an infinite value stays as it is, and
a NaN stays a NaN.
"""

from __future__ import annotations

from graph_passes.formats import QUANT_GROUP

__all__ = ["ROUNDING_CONSTANTS", "rounded"]

ROUNDING_CONSTANTS = f"""
  round_axis = Constant <value_ints = [-1]> ()
  round_start = Constant <value_ints = [0]> ()
  round_group = Constant <value_ints = [{QUANT_GROUP}]> ()
  round_rest = Constant <value_ints = [{QUANT_GROUP - 1}]> ()
  round_levels = Constant <value_float = 127.0> ()
  round_least = Constant <value_float = {2.0**-126!r}> ()
"""
_ROUND = """
  {0}_size = Shape <start = -1> ({0})
  {0}_above = Add ({0}_size, round_rest)
  {0}_groups = Div ({0}_above, round_group)
  {0}_whole = Mul ({0}_groups, round_group)
  {0}_missing = Sub ({0}_whole, {0}_size)
  {0}_pads = Concat <axis = 0> (round_start, {0}_missing)
  {0}_padded = Pad ({0}, {0}_pads, , round_axis)
  {0}_rows = Shape <end = -1> ({0})
  {0}_grouped = Concat <axis = 0> ({0}_rows, {0}_groups, round_group)
  {0}_blocks = Reshape ({0}_padded, {0}_grouped)
  {0}_magnitudes = Abs ({0}_blocks)
  {0}_largest = ReduceMax <keepdims = 1> ({0}_magnitudes, round_axis)
  {0}_quotient = Div ({0}_largest, round_levels)
  {0}_scale = Max ({0}_quotient, round_least)
  {0}_steps = Div ({0}_blocks, {0}_scale)
  {0}_integers = Round ({0}_steps)
  {0}_rounded = Mul ({0}_integers, {0}_scale)
  {0}_infinite = IsInf ({0}_scale)
  {0}_kept = Where ({0}_infinite, {0}_blocks, {0}_rounded)
  {0}_flat = Concat <axis = 0> ({0}_rows, {0}_whole)
  {0}_all = Reshape ({0}_kept, {0}_flat)
  {0}_near = Slice ({0}_all, round_start, {0}_size, round_axis)
"""


def rounded(value: str) -> str:
    """Return what computes ``{value}_near`` from ``value``, ``[..., columns]``; needs `ROUNDING_CONSTANTS`."""
    return _ROUND.format(value)
