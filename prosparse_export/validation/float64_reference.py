"""What a sparse operator should store and compute: its weights, and its results in float64 with their error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from graph_passes import dequantize
from graph_passes.formats import QUANT_GROUP
from prosparse_export.analysis.ffn_nodes import FfnNode
from prosparse_export.export.rounded_reference import stored_arrays
from prosparse_models import FileWeights

__all__ = ["Weights", "exact_ffn", "gamma", "linear_error", "load_weights", "stored_values"]

U = 2.0**-24  # unit roundoff of float32
STEP = 0.52 / 32639
"""Half a step of the 16-bit activations that the i8 and i4 kernels multiply with, as a share of the largest of
32 numbers, and the roundings on the way there (native/include/prosparse/ffn_kernels.h)."""

Array = NDArray[np.float64]
Weights = Mapping[str, Array]
"""Matrices ``gate`` (if there is one), ``up``, ``down``, each ``[d_ff, d_model]``, and biases ``gate_bias`` etc."""


def gamma(n: int) -> float:
    """Return the relative error of a float32 sum of ``n`` products (Higham, 2nd ed., section 3.1)."""
    return n * U / (1 - n * U)


def load_weights(
    model: PreTrainedModel, linears: Sequence[str], node: FfnNode, weights: FileWeights | None = None
) -> tuple[dict[str, NDArray[np.generic]], Weights]:
    """Return what the artifact should store for a block, by input, and what that means in float64.

    Args:
        model: PyTorch with the checkpoint's own weights.
        linears: module paths of the block's linear layers, down_proj last.
        node: the operator.
        weights: where the matrices are that ``model`` has placeholders for.
    """
    roles = ["gate", "up", "down"] if node.gated else ["up", "down"]
    inputs = iter(node.node.input[1:])
    stored: dict[str, NDArray[np.generic]] = {}
    exact: dict[str, Array] = {}
    for role, path in zip(roles, linears, strict=True):
        layer = model.get_submodule(path)
        matrix = layer.weight.detach() if weights is None else weights.values(layer.weight)
        if isinstance(layer, Conv1D):  # [in, out]
            matrix = matrix.T
        arrays = stored_arrays(matrix, node.weights, is_down=role == "down")
        stored |= {next(inputs): array for array in arrays}
        columns = matrix.shape[0 if role == "down" else 1]
        exact[role] = stored_values(arrays, columns).astype(np.float64)
        width = columns if role == "down" else len(arrays[0])
        bias = getattr(layer, "bias", None)
        values = np.zeros(width, np.float32) if bias is None else bias.detach().float().numpy()
        stored[next(inputs)] = values
        exact[f"{role}_bias"] = values.astype(np.float64)
    return stored, exact


def stored_values(arrays: Sequence[NDArray[Any]], columns: int) -> NDArray[np.float32]:
    """Return the float32 matrix ``[rows, columns]`` that `stored_arrays`'s result stands for, exactly."""
    if len(arrays) == 1:
        return arrays[0].astype(np.float32)
    integers, scales = arrays
    return dequantize(integers, scales, columns)


def exact_ffn(x: Array, w: Weights, activation: str, threshold: float, *, rounds: bool) -> tuple[Array, Array]:
    """Return the block's result in float64, and how far float32 arithmetic may be from it.

    Args:
        x: inputs ``[tokens, d_model]``.
        w: the stored weights.
        activation: relu, relu2, fatrelu, drelu or silu.
        threshold: of the activation.
        rounds: activations are rounded to 16 bits, as the i8 and i4 kernels do.

    Source:
        Forward error analysis, step by step; docs/guides/validate.md.
    """
    first = "gate" if "gate" in w else "up"
    z, z_error = linear_error(x, w[first], w[f"{first}_bias"], rounds)
    t = float(np.float32(threshold))
    a = np.where(z <= t, 0.0, z)
    # Within rounding of the threshold either side is right: the whole neuron enters the bound.
    a_error = np.where(np.abs(z - t) <= z_error, np.abs(z) + z_error, np.where(a == 0, 0.0, z_error))
    if activation == "silu":  # its slope is 1.1 at most; Exp, Add and Div round, the first by 2 units in the last place
        with np.errstate(over="ignore"):  # exp of a large number: the quotient is 0
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
        v, v_error = linear_error(x, w["up"], w["up_bias"], rounds)
    if activation == "drelu":
        v = np.maximum(v, 0.0)
    h = a * v
    h_error = a_error * (np.abs(v) + v_error) + np.abs(a) * v_error + 2 * U * np.abs(h)
    down = np.abs(w["down"])
    reach = np.abs(h) + h_error
    bound = h_error @ down + gamma(len(down) + 6) * (reach @ down + np.abs(w["down_bias"]))
    if rounds:  # a product with a weight is at most its block's largest, rounded up by 8 / 7
        cols = down.shape[1]
        blocks = np.pad(down, [(0, 0), (0, -cols % QUANT_GROUP)]).reshape(len(down), -1, QUANT_GROUP).max(-1)
        largest = np.stack([(row[:, None] * blocks).max(0) for row in reach])
        active = ((h != 0) | (h_error != 0)).sum(-1, keepdims=True)
        bound += np.repeat(largest, QUANT_GROUP, -1)[:, :cols] * STEP * 128 * active * 8 / 7
    return h @ w["down"] + w["down_bias"], bound


def linear_error(x: Array, w: Array, b: Array, rounds: bool) -> tuple[Array, Array]:
    """Return ``x @ w.T + b``, ``[tokens, out]``, and the bound on what float32 sums may differ from it."""
    step = np.zeros_like(x)
    if rounds:
        cols = x.shape[-1]
        blocks = np.pad(np.abs(x), [(0, 0), (0, -cols % QUANT_GROUP)]).reshape(len(x), -1, QUANT_GROUP)
        step = np.repeat(blocks.max(-1), QUANT_GROUP, axis=-1)[:, :cols] * STEP
    size = np.abs(w).T
    return x @ w.T + b, gamma(w.shape[1] + 6) * ((np.abs(x) + step) @ size + np.abs(b)) + step @ size
