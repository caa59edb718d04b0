"""Does an optimized file still give what its source gives? The bound on the difference, and how it follows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graph_passes import FORMAT_SPECS, FfnFormat, FfnOutcome, format_of
from graph_passes.custom_ops import format_in
from prosparse_export.errors import ProSparseError
from prosparse_export.optimize.compare_outputs import largest_difference
from prosparse_export.optimize.matmulnbits_float import float_products

__all__ = ["check_outputs", "has_halves", "output_bound"]

_FLOAT, _HALF = 1e-4, 2e-2  # of the largest output: sums in another order; a half rounds at every node
_MARGIN = 4.0  # the largest of many outputs, and layers that amplify
_UNRELATED = 2.0  # two outputs of one size differ by twice that at most, however many layers amplify


def has_halves(model: ir.Model) -> bool:
    """Return whether ``model`` has 16-bit floats among its weights, inputs or outputs."""
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    values = (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values())
    return any(value.dtype in halves for value in values)


def output_bound(rewritten: Sequence[FfnOutcome], weights: FfnFormat | None, *, halves: bool) -> float:
    """Return by how much an output may change at most, as a share of the largest one.

    Where weights are rounded, products err independently of each other, so their errors add as squares: in a block
    up and down, and the gate; relu2 doubles what its argument errs by. Under FATReLU about as large a share of
    neurons as the error comes to lie on the other side of the threshold, and moves by all of it. Of MatMulNBits'
    digits down_proj's alone change, and the other scales become float16.
    """
    bound = _HALF if halves else _FLOAT
    squares = 0.0
    for outcome in rewritten if weights is not None else ():
        stored = format_in(outcome.op)
        first, down = (FORMAT_SPECS[format_of(stored, is_down=is_down)] for is_down in (False, True))
        scales_only = outcome.source == "nbits" and first.group > 0
        error = FORMAT_SPECS["f16"].error if scales_only else first.error
        squares += (error * (2.0 if outcome.activation == "relu2" else 1.0)) ** 2 + down.error**2
        squares += error**2 if "Gated" in outcome.op else 0.0
        squares += error if outcome.threshold else 0.0
    return min(bound + _MARGIN * math.sqrt(squares), _UNRELATED)


def check_outputs(
    source: Path,
    written: Path,
    rewritten: Sequence[FfnOutcome],
    weights: FfnFormat | None,
    *,
    halves: bool,
    library: bool,
) -> dict[str, Any]:
    """Compare outputs on made-up inputs and return what the manifest says of it.

    Files with MatMulNBits are compared a second time with its activations in float32, since its rounding of them is
    no fault of the rewrite; the bound is held against that. Their copies go beside ``written``.

    Raises:
        ProSparseError: they differ by more than `output_bound`.
    """
    found = largest_difference(source, written, library=library)
    if isinstance(found, str):
        return {"outputs_compared": False, "reason": found}
    difference, size = found
    record: dict[str, Any] = {"outputs_compared": True, "largest_difference": difference, "largest_output": size}
    if any(o.source == "nbits" for o in rewritten):
        room = written.parent
        with float_products(source, room) as before, float_products(written, room) as after:
            found = largest_difference(before, after, library=library)
        if isinstance(found, str):
            return {**record, "float_products_compared": False, "reason": found}
        difference, size = found
        record["largest_difference_of_float_products"] = difference
    bound = output_bound(rewritten, weights, halves=halves) * max(1.0, size)
    if not difference <= bound:
        raise ProSparseError(
            f"check: {written.name}: outputs differ from the source's: expected at most {bound:g}, got {difference:g}",
            hint="please report this file's exporter"
            if weights in (None, "f32")
            else "take --weights f32 or another that rounds less; --no-check writes it all the same",
        )
    return {**record, "bound": bound}
