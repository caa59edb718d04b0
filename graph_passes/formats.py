"""Storage formats of weight matrices. A format is one row of `FORMAT_SPECS`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "FFN_FORMATS",
    "FORMATS",
    "FORMAT_SPECS",
    "QUANT_GROUP",
    "FfnFormat",
    "Format",
    "FormatSpec",
    "float_format",
    "format_of",
    "is_quantized",
    "mixed_format",
]

Format = Literal["f32", "f16", "bf16", "i8", "i4", "nl4"]
"""Format of one matrix."""
FfnFormat = Literal["f32", "f16", "bf16", "i8", "i4", "nl4", "i4i8", "nl4i8"]
"""Format of an FFN's matrices: the same for all of them, or one of `_MIXED`."""

QUANT_GROUP = 32
"""Size of a quantization group: consecutive weights of a row that share one scale."""
_SCALE_BITS = 16  # scales are float16
# The largest of 32 normal weights is about 2.3 standard deviations, and rounding to a step errs by step / sqrt(12).
_PEAK = 2.3
# nl4's integers: those of 16 levels, 0 among them, with the least squared error on normally distributed weights when
# the scale is searched for. Differences are at most 7 bits, so that every byte dot product can take them.
_NONLINEAR = (-64, -50, -40, -31, -24, -17, -11, -5, 0, 7, 13, 20, 28, 36, 47, 62)
_NONLINEAR_GAIN = 0.9  # of the error, against i4: square root of 0.81, on the same weights


@dataclass(frozen=True)
class FormatSpec:
    """How a matrix is stored.

    Attributes:
        name: as in operator names (in upper case there) and command-line options.
        onnx_name: element type of the stored tensor. UINT8 holds two 4-bit weights per byte, each plus 8 or as a place
            in ``table``.
        bits: bits per weight, without its share of the scale.
        error: root mean square error of a linear layer's output caused by rounding its weights, relative to the output.
            For float formats, the largest relative error of a weight.
        levels: smallest and largest integer; None for float formats.
        table: 4 bits: the only integers, in ascending order; None for all of them.
    """

    name: Format
    onnx_name: str
    bits: int
    error: float
    levels: tuple[int, int] | None = None
    table: tuple[int, ...] | None = None

    @property
    def onnx_type(self) -> ir.DataType:
        """Element type of the stored tensor."""
        import onnx_ir as ir  # prosparse-runtime has none

        return ir.DataType[self.onnx_name]

    @property
    def group(self) -> int:
        """Weights that share one float16 scale; 0 for float formats, which have no scales."""
        return QUANT_GROUP if self.levels is not None else 0

    @property
    def keeps_integers(self) -> bool:
        """Whether it stores the 4-bit integers of other files (MatMulNBits) as they are."""
        return self.levels is not None and self.table is None

    @property
    def step(self) -> float:
        """Mean distance of neighboring integers."""
        return 1.0 if self.table is None else (self.table[-1] - self.table[0]) / (len(self.table) - 1)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """NumPy type of the stored tensor."""
        return self.onnx_type.numpy()

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight, including its share of the scale."""
        return self.bits + (_SCALE_BITS / self.group if self.group else 0.0)

    def groups(self, cols: int) -> int:
        """Return the number of quantization groups in a row of ``cols`` weights."""
        return -(-cols // self.group) if self.group else 0

    def stored_columns(self, cols: int) -> int:
        """Return the columns of the stored tensor: ``cols``, or the bytes that hold whole groups of 4-bit weights."""
        return self.groups(cols) * self.group // 2 if self.bits == 4 else cols

    def columns(self, stored: int) -> int:
        """Return the columns that ``stored`` columns of the tensor hold, including the padding of 4-bit groups."""
        return stored * 2 if self.bits == 4 else stored


def _integers(name: Format, onnx_name: str, bits: int, low: int, high: int) -> FormatSpec:
    return FormatSpec(name, onnx_name, bits, _PEAK / max(-low, high) / math.sqrt(12), (low, high))


FORMAT_SPECS: Mapping[Format, FormatSpec] = {
    spec.name: spec
    for spec in (
        FormatSpec("f32", "FLOAT", 32, 0.0),
        FormatSpec("f16", "FLOAT16", 16, 2.0**-11),
        FormatSpec("bf16", "BFLOAT16", 16, 2.0**-8),
        _integers("i8", "INT8", 8, -127, 127),
        _integers("i4", "UINT8", 4, -8, 7),
        FormatSpec(
            "nl4",
            "UINT8",
            4,
            _NONLINEAR_GAIN * _PEAK / 8 / math.sqrt(12),
            (_NONLINEAR[0], _NONLINEAR[-1]),
            _NONLINEAR,
        ),
    )
}
_MIXED: Mapping[FfnFormat, tuple[Format, Format]] = {  # gate_proj and up_proj; down_proj
    "i4i8": ("i4", "i8"),
    "nl4i8": ("nl4", "i8"),
}

FORMATS: tuple[Format, ...] = tuple(FORMAT_SPECS)
FFN_FORMATS: tuple[FfnFormat, ...] = (*FORMATS, *_MIXED)


def format_of(weights: FfnFormat, *, is_down: bool) -> Format:
    """Return the format of one matrix of an FFN: of down_proj, or of gate_proj and up_proj."""
    if weights in _MIXED:
        return _MIXED[weights][is_down]
    return weights  # type: ignore[return-value]  # only the mixed ones are not formats of a matrix


def mixed_format(first: Format, down: Format) -> FfnFormat:
    """Return the format of an FFN with gate_proj and up_proj in ``first`` and down_proj in ``down``.

    If no operator has this combination, it is the wider of the two for all matrices.
    """
    for name, pair in _MIXED.items():
        if pair == (first, down):
            return name
    return max(first, down, key=lambda name: FORMAT_SPECS[name].bits)


def is_quantized(weights: FfnFormat) -> bool:
    """Return whether a format, of a matrix or of an FFN, stores integers with scales."""
    return any(FORMAT_SPECS[format_of(weights, is_down=is_down)].group for is_down in (False, True))


def float_format(dtype: ir.DataType | str) -> Format | None:
    """Return the float format that stores ``dtype`` exactly, given as an ONNX type or by its NumPy or PyTorch name."""
    for spec in FORMAT_SPECS.values():
        if not spec.group and dtype in (spec.onnx_type, spec.dtype.name):
            return spec.name
    return None
