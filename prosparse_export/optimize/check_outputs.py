"""Compare the outputs of an optimized file with its source's, within a derived bound."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from graph_passes import FORMAT_SPECS, FfnFormat, FfnOutcome, format_of
from graph_passes.custom_ops import accuracy_level, format_in
from prosparse_export.artifact.accuracy_level import LEVEL_4_ERROR
from prosparse_export.artifact.measured_records import OutputCheck
from prosparse_export.errors import ProSparseError
from prosparse_export.optimize.compare_outputs import largest_difference
from prosparse_export.optimize.matmulnbits_float import with_float_activations

__all__ = ["check_outputs", "has_halves", "output_bound"]

_FLOAT, _HALF = 1e-4, 2e-2  # relative to the largest output: summation order; float16 rounds at every node
_MARGIN = 4.0  # the maximum over many outputs, and amplification by later layers
_UNRELATED = 2.0  # outputs of one magnitude differ by at most twice that


def has_halves(model: ir.Model) -> bool:
    """Return whether ``model`` has 16-bit floats among its weights, inputs or outputs."""
    halves = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    values = (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values())
    return any(value.dtype in halves for value in values)


def output_bound(rewritten: Sequence[FfnOutcome], weights: FfnFormat | None, *, halves: bool) -> float:
    """Return the largest allowed change of an output, relative to the largest output.

    Rounding errors of different MatMuls are independent, so their squares add: up_proj, down_proj and, if gated,
    gate_proj of every FFN. relu2 doubles its argument's error. Under FATReLU, a fraction of neurons about as large as
    the error crosses the threshold and changes fully. Unless the format is nl4, MatMulNBits keeps its 4-bit
    values except in down_proj; the other scales become float16.
    """
    bound = _HALF if halves else _FLOAT
    squares = 0.0
    for outcome in rewritten if weights is not None else ():
        stored = format_in(outcome.op)
        first, down = (FORMAT_SPECS[format_of(stored, is_down=is_down)] for is_down in (False, True))
        scales_only = outcome.source == "nbits" and first.keeps_integers
        error = FORMAT_SPECS["f16"].error if scales_only else first.error
        squares += (error * (2.0 if outcome.activation == "relu2" else 1.0)) ** 2 + down.error**2
        squares += error**2 if "Gated" in outcome.op else 0.0
        squares += error if outcome.threshold else 0.0
        squares += 3 * LEVEL_4_ERROR**2 if accuracy_level(outcome.op) == 4 else 0.0
    return min(bound + _MARGIN * math.sqrt(squares), _UNRELATED)


def check_outputs(
    source: Path,
    written: Path,
    rewritten: Sequence[FfnOutcome],
    weights: FfnFormat | None,
    *,
    halves: bool,
    library: bool,
) -> OutputCheck:
    """Compare outputs on random inputs and return the manifest's record.

    MatMulNBits may round activations to 8 bits, which the rewrite does not cause. Files that use it are therefore
    compared a second time with float32 activations, and that difference must be within the bound. The copies for it
    are temporary and lie next to ``written``.

    Raises:
        ProSparseError: they differ by more than `output_bound`.
    """
    found = largest_difference(source, written, library=library)
    if isinstance(found, str):
        return OutputCheck(outputs_compared=False, reason=found)
    difference, size = found
    record = OutputCheck(outputs_compared=True, largest_difference=difference, largest_output=size)
    if any(o.source == "nbits" for o in rewritten):
        room = written.parent
        with with_float_activations(source, room) as before, with_float_activations(written, room) as after:
            found = largest_difference(before, after, library=library)
        if isinstance(found, str):
            return replace(record, reason=found)
        difference, size = found
        record = replace(record, float_activations_difference=difference)
    bound = output_bound(rewritten, weights, halves=halves) * max(1.0, size)
    if not difference <= bound:
        raise ProSparseError(
            f"check: {written.name}: outputs differ from the source's: expected at most {bound:g}, got {difference:g}",
            hint="please report this, and name the file's exporter"
            if weights in (None, "f32")
            else "pass --weights f32 or another format that rounds less, or --no-check to write it anyway",
        )
    return replace(record, bound=bound)
