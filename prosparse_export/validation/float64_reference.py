"""The weights that a sparse operator should store and the float64 outputs that it should compute, with error bounds.

The rule for an active neuron is written out here, independent of the one that kernels, bodies and reports share.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from graph_passes import are_output_powers, dequantize, is_quantized, output_powers
from graph_passes.formats import QUANT_GROUP, Format, format_of
from prosparse_export.analysis.ffn_nodes import FfnNode
from prosparse_export.export.rounded_reference import stored_arrays
from prosparse_models import FileWeights

__all__ = ["Weights", "exact_ffn", "gamma", "level_4_error", "linear_error", "load_weights", "stored_values"]

U = 2.0**-24  # unit roundoff of float32
STEP = 0.52 / 32639
"""Error of a 16-bit activation in the kernels of integer formats, relative to the largest of its group of 32: half a
step and the roundings before it (native/include/prosparse/kernels.h)."""

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
"""Matrices ``gate`` (if gated), ``up`` and ``down``, each ``[d_ff, d_model]``, biases ``gate_bias`` etc., and
``powers`` of the outputs, if ``down`` is divided by them."""


def gamma(n: int) -> float:
    """Return the relative error of a float32 sum of ``n`` products (Higham, 2nd ed., section 3.1)."""
    return n * U / (1 - n * U)


def load_weights(
    model: PreTrainedModel,
    linears: Sequence[str],
    node: FfnNode,
    weights: FileWeights | None,
    read: Callable[[str], NDArray[np.generic]],
    compensated: Collection[str] = (),
) -> tuple[dict[str, NDArray[np.generic]], Weights]:
    """Return the initializers that the artifact should have for an FFN, by input name, and their float64 values.

    Args:
        model: PyTorch with the checkpoint's own weights.
        linears: module paths of the FFN's linear layers, down_proj last.
        node: the operator.
        weights: reads the matrices that ``model`` has placeholders for.
        read: returns an initializer of the artifact; called for scales, which depend on how it was exported.
        compensated: modules whose integers are not the nearest ones, and are read too.
    """
    roles = ["gate", "up", "down"] if node.gated else ["up", "down"]
    inputs = iter(node.node.input[1:])
    quantized = is_quantized(node.weights)
    stored: dict[str, NDArray[np.generic]] = {}
    exact: dict[str, Array] = {}
    for role, path in zip(roles, linears, strict=True):
        layer = model.get_submodule(path)
        matrix = layer.weight.detach() if weights is None else weights.values(layer.weight)
        if isinstance(layer, Conv1D):  # [d_in, d_out]
            matrix = matrix.T
        names = [next(inputs) for _ in range(2 if quantized else 1)]
        scales = read(names[1]) if quantized else None
        integers = read(names[0]) if path in compensated else None
        powers = _powers(matrix, node, read) if role == "down" else None
        is_down = role == "down"
        arrays = stored_arrays(matrix, node.weights, is_down=is_down, scales=scales, integers=integers, powers=powers)
        stored |= dict(zip(names, arrays, strict=True))
        columns = matrix.shape[0 if role == "down" else 1]
        exact[role] = stored_values(arrays, columns, format_of(node.weights, is_down=is_down)).astype(np.float64)
        width = columns if role == "down" else len(arrays[0])
        bias = getattr(layer, "bias", None)
        values = np.zeros(width, np.float32) if bias is None else bias.detach().float().numpy()
        if powers is not None:
            values = values / powers
            stored[node.powers] = powers
            exact["powers"] = powers.astype(np.float64)
        stored[next(inputs)] = values
        exact[f"{role}_bias"] = values.astype(np.float64)
    return stored, exact


def _powers(
    matrix: torch.Tensor, node: FfnNode, read: Callable[[str], NDArray[np.generic]]
) -> NDArray[np.float32] | None:
    """Return the powers that a down_proj, ``[d_model, d_ff]``, should be divided by; None if the artifact has none."""
    if not node.powers:
        return None
    weight = matrix.T.float().numpy()
    own = read(node.powers)
    return cast("NDArray[np.float32]", own) if are_output_powers(own, weight) else output_powers(weight)


def stored_values(arrays: Sequence[NDArray[Any]], columns: int, weights: Format) -> NDArray[np.float32]:
    """Return the exact float32 values, ``[rows, columns]``, of the result of `stored_arrays` in a format."""
    if len(arrays) == 1:
        return arrays[0].astype(np.float32)
    integers, scales = arrays
    return dequantize(integers, scales, columns, weights)


def exact_ffn(
    x: Array, w: Weights, activation: str, threshold: float, *, rounds: bool, level: int = 0
) -> tuple[Array, Array]:
    """Return an FFN's output in float64, ``[tokens, d_model]``, and the error bound of float32 arithmetic.

    Args:
        x: inputs ``[tokens, d_model]``.
        w: the stored weights.
        activation: relu, relu2, fatrelu, drelu or silu.
        threshold: the activation's threshold.
        rounds: activations are rounded to 16 bits, as in the kernels of integer formats.
        level: accuracy level of the operator.

    Source:
        Forward error analysis, step by step; docs/guides/validate.md.
    """
    first = "gate" if "gate" in w else "up"
    z, z_error = linear_error(x, w[first], w[f"{first}_bias"], rounds, level)
    t = float(np.float32(threshold))
    a = np.where(z <= t, 0.0, z)
    # Within rounding of the threshold the neuron may be active or not: all of it enters the bound.
    a_error = np.where(np.abs(z - t) <= z_error, np.abs(z) + z_error, np.where(a == 0, 0.0, z_error))
    if activation == "silu":  # slope at most 1.1; Exp, Add and Div round, Exp by 2 ulp
        with np.errstate(over="ignore"):  # exp overflows to infinity, and the quotient is 0
            a = z / (1 + np.exp(-z))
        a_error = 1.1 * z_error + 8 * U * np.abs(a)
        near = np.abs(np.abs(a) - t) <= a_error
        a = np.where(np.abs(a) <= t, 0.0, a)
        a_error = np.where(near, t + 2 * a_error, np.where(a == 0, 0.0, a_error))
    if activation == "relu2":
        a_error = 2 * np.abs(a) * a_error + a_error**2 + 2 * U * a**2
        a = a**2
    v, v_error = np.ones_like(a), np.zeros_like(a)
    if first == "gate":
        v, v_error = linear_error(x, w["up"], w["up_bias"], rounds, level)
    if activation == "drelu":
        v = np.maximum(v, 0.0)
    h = a * v
    h_error = a_error * (np.abs(v) + v_error) + np.abs(a) * v_error + 2 * U * np.abs(h)
    if level == 4:
        h_error += level_4_error(np.abs(h) + h_error)
    down = np.abs(w["down"])
    reach = np.abs(h) + h_error
    bound = h_error @ down + gamma(len(down) + 6) * (reach @ down + np.abs(w["down_bias"]))
    if rounds:  # relative to each group's largest weight, times 8 / 7 for i4's asymmetric range
        cols = down.shape[1]
        groups = np.pad(down, [(0, 0), (0, -cols % QUANT_GROUP)]).reshape(len(down), -1, QUANT_GROUP).max(-1)
        largest = np.stack([(row[:, None] * groups).max(0) for row in reach])
        active = ((h != 0) | (h_error != 0)).sum(-1, keepdims=True)
        bound += np.repeat(largest, QUANT_GROUP, -1)[:, :cols] * STEP * 128 * active * 8 / 7
    y = h @ w["down"] + w["down_bias"]
    return (y * w["powers"], bound * w["powers"]) if "powers" in w else (y, bound)


def level_4_error(x: Array) -> Array:
    """Return what accuracy level 4 allows per activation, relative to the weight (docs/reference/operators.md).

    Half a step of 8 bits, 1/254 of the largest of its group of 32, and the weight's rounding to bfloat16.
    """
    half = np.abs(_group_largest(x)) * 1.00001 / 254
    error: Array = half + 2.0**-8 * (np.abs(x) + half)
    return error


def _group_largest(x: Array) -> Array:
    cols = x.shape[-1]
    groups = np.pad(np.abs(x), [(0, 0), (0, -cols % QUANT_GROUP)]).reshape(len(x), -1, QUANT_GROUP)
    largest: Array = np.repeat(groups.max(-1), QUANT_GROUP, axis=-1)[:, :cols]
    return largest


def linear_error(x: Array, w: Array, b: Array, rounds: bool, level: int = 0) -> tuple[Array, Array]:
    """Return ``x @ w.T + b``, ``[tokens, d_out]``, and the error bound of float32 sums and rounded activations."""
    step = np.zeros_like(x)
    if rounds:
        step = _group_largest(x) * STEP
    if level == 4:
        step = step + level_4_error(x)
    size = np.abs(w).T
    return x @ w.T + b, gamma(w.shape[1] + 6) * ((np.abs(x) + step) @ size + np.abs(b)) + step @ size
