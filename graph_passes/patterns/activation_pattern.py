"""Recognize activations that produce exact zeros: their kind, threshold and pre-activation."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graph_passes.patterns.linear import scalar_constant

__all__ = ["Activation", "describe_activation", "match_activation", "without_identities"]

# Names of activations that consist of several operators, by the operator that identifies them.
_NAMES = {"Erf": "Gelu", "Gelu": "Gelu", "Tanh": "Gelu (tanh)", "Sigmoid": "Silu"}
_COMPARISONS = frozenset(["Less", "LessOrEqual", "Greater", "GreaterOrEqual"])


@dataclass(frozen=True)
class Activation:
    """``kind`` (relu, relu2, fatrelu, silu) with ``threshold`` on pre-activation ``z``; for silu on abs(silu(z)).

    The operators treat a neuron as inactive if z <= threshold (function_bodies.py).
    """

    kind: str
    threshold: float
    z: ir.Value


def match_activation(value: ir.Value) -> Activation | None:
    """Return the activation that produces ``value``, or None.

    1. ``Relu(z)``, ``Max(z, 0)``, ``Clip(z, 0)`` without an upper bound below float32's maximum: relu. The 0 may be
       expanded to a shape.
    2. ``Where(z <= t, 0, z)`` and its mirror images, ``z * Cast(z > t)``: fatrelu, or relu for t = 0. If the graph
       keeps the boundary (``z >= t``), the threshold becomes the next float below t, which keeps the same values.
    3. ``ThresholdedRelu``: fatrelu, or relu for alpha = 0.
    4. ``Pow(r, 2)``, ``r * r`` with r of case 1, 2 or 3: relu2.
    5. case 2 that compares ``Abs(s)`` and keeps ``s``, with ``s = z * Sigmoid(z)``: silu.

    Identity, and Dropout in inference mode, may appear anywhere in between.
    """
    value = without_identities(value)
    node = value.producer()
    if node is None or node.domain != "":
        return None
    match node.op_type:
        case "Relu":
            return _relu(node.inputs[0])
        case "Max" if len(node.inputs) == 2:
            for z, zero in (node.inputs, node.inputs[::-1]):
                if z is not None and _is_zero(zero) and _keeps_shape(node, z):
                    return _relu(z)
        case "Clip":
            if _clips_below_zero_only(node):
                return _relu(node.inputs[0])
        case "ThresholdedRelu":
            threshold = node.attributes.get_float("alpha", 1.0)
            if node.inputs[0] is not None and 0.0 <= threshold < math.inf:
                return Activation("fatrelu" if threshold > 0.0 else "relu", threshold, node.inputs[0])
        case "Where":
            return _from_where(node)
        case "Pow":
            if scalar_constant(node.inputs[1]) == 2.0:
                return _squared(node.inputs[0])
        case "Mul":
            if node.inputs[0] is node.inputs[1]:
                return _squared(node.inputs[0])
            return _from_mask(node)
    return None


def describe_activation(interior: Collection[ir.Node], *, gated: bool) -> str:
    """Return why the nodes between up_proj and down_proj are not a ReLU, naming their operators."""
    ops = {f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in interior}
    what = "gate" if gated else "activation"
    if named := next((name for op, name in _NAMES.items() if op in ops), ""):
        return f"{what} is {named}, not a ReLU"
    shapeless = ops - {"Mul", "Cast", "Expand", "Identity", "Shape", "ConstantOfShape"}
    relus = [node for node in interior if any(match_activation(value) for value in node.outputs)]
    if relus and shapeless <= {relus[-1].op_type, *_COMPARISONS, "Not"}:
        # There is a ReLU and no other activation, so the remaining nodes are what is not supported.
        others = [n for n in interior if n not in relus and n.op_type in ("Mul", "Cast") and not _combines(n)]
        names = ", ".join(f"{n.op_type} {n.name or n.outputs[0].name or ''!r}" for n in reversed(others))
        return f"unsupported nodes next to the ReLU: {names or 'Mul'}"
    return f"{what} is {' and '.join(sorted(shapeless)) or 'linear'}, not a ReLU"


def _combines(node: ir.Node) -> bool:
    """Return whether ``node`` makes a mask or combines two values of the FFN, as opposed to scaling by a constant."""
    if node.op_type == "Cast":
        return _comparison(node.inputs[0]) is not None
    return all(value is not None and scalar_constant(value) is None for value in node.inputs)


def without_identities(value: ir.Value) -> ir.Value:
    """Return the value behind ``value``, skipping Identity and Dropout in inference mode."""
    while (node := value.producer()) is not None and node.domain == "" and node.inputs and node.inputs[0] is not None:
        training = node.inputs[2] if len(node.inputs) > 2 else None
        if node.op_type != "Identity" and (node.op_type != "Dropout" or training is not None):
            break
        value = node.inputs[0]
    return value


def _clips_below_zero_only(node: ir.Node) -> bool:
    low, high = (node.inputs[i] if len(node.inputs) > i else None for i in (1, 2))
    bounds: list[float | None] = [scalar_constant(low), scalar_constant(high)]
    if len(node.inputs) == 1:  # attributes up to opset 10
        bounds = [node.attributes.get_float(name, None) for name in ("min", "max")]
    elif high is not None and bounds[1] is None:
        return False
    return bounds[0] == 0.0 and (bounds[1] is None or bounds[1] >= float(np.finfo(np.float32).max))


def _relu(z: ir.Value | None) -> Activation | None:
    return Activation("relu", 0.0, z) if z is not None else None


def _squared(value: ir.Value | None) -> Activation | None:
    inner = match_activation(value) if value is not None else None
    if inner is None or inner.kind in ("relu2", "silu"):
        return None
    return Activation("relu2", inner.threshold, inner.z)


def _comparison(value: ir.Value | None) -> tuple[ir.Value, float, bool] | None:
    """Return (z, t, active) for a comparison of z with a constant.

    ``t`` is adjusted so that the comparison equals ``z > t`` (active) or ``z <= t`` (not active) for every float.
    """
    node = value.producer() if value is not None else None
    if node is None or node.domain != "":
        return None
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.BOOL:  # masked_fill
        return _comparison(node.inputs[0])
    if node.op_type == "Not":
        inner = _comparison(node.inputs[0])
        return (inner[0], inner[1], not inner[2]) if inner is not None else None
    if node.op_type not in _COMPARISONS:
        return None
    left, right = node.inputs
    below, strict = node.op_type.startswith("Less"), not node.op_type.endswith("OrEqual")
    threshold = scalar_constant(right)
    if threshold is None:
        threshold, left, below = scalar_constant(left), right, not below
    if threshold is None or left is None or not 0.0 <= threshold < math.inf:
        return None
    keeps_boundary = strict == below  # z < t is inactive, or z >= t is active
    if keeps_boundary and threshold > 0.0:  # at t = 0 the boundary yields 0 either way
        threshold = float(np.nextafter(np.float32(threshold), np.float32(0.0)))
    return left, threshold, not below


def _from_where(node: ir.Node) -> Activation | None:
    condition = _comparison(node.inputs[0])
    if condition is None:
        return None
    z, threshold, active = condition
    kept, zeroed = (node.inputs[1], node.inputs[2]) if active else (node.inputs[2], node.inputs[1])
    return _above(z, threshold, kept) if _is_zero(zeroed) and _keeps_shape(node, z) else None


def _above(compared: ir.Value, threshold: float, kept: ir.Value | None) -> Activation | None:
    """Return the activation that keeps ``kept`` if ``compared`` exceeds ``threshold``."""
    if kept is compared:
        return Activation("fatrelu" if threshold > 0.0 else "relu", threshold, compared)
    size = compared.producer()
    if kept is not None and size is not None and size.op_type == "Abs" and size.domain == "" and size.inputs[0] is kept:
        z = _silu_input(kept)
        return Activation("silu", threshold, z) if z is not None else None
    return None


def _silu_input(value: ir.Value) -> ir.Value | None:
    """Return z if ``value`` is ``z * Sigmoid(z)``, else None."""
    node = value.producer()
    if node is None or node.op_type != "Mul" or node.domain != "":
        return None
    for z, sigmoid in (node.inputs, node.inputs[::-1]):
        maker = sigmoid.producer() if sigmoid is not None else None
        if z is not None and maker is not None and (maker.op_type, maker.domain) == ("Sigmoid", ""):
            return z if maker.inputs[0] is z else None
    return None


def _is_zero(value: ir.Value | None) -> bool:
    """Return whether ``value`` is the constant 0, possibly expanded: Expand, or ConstantOfShape (zeros_like)."""
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Expand" and node.domain == "":
        value = node.inputs[0]
        node = value.producer() if value is not None else None
    if node is not None and node.op_type == "ConstantOfShape" and node.domain == "":
        fill = node.attributes.get("value")
        return fill is None or not np.any(fill.as_tensor().numpy())  # defaults to float32 0
    return scalar_constant(value) == 0.0


def _keeps_shape(node: ir.Node, z: ir.Value) -> bool:
    """Return whether ``node`` has the shape of ``z``, as far as it is known: larger zeros would broadcast it."""
    one, other = node.outputs[0].shape, z.shape
    if one is None or other is None:
        return True
    return len(one) == len(other) and all(
        a == b for a, b in zip(one, other, strict=True) if isinstance(a, int) and isinstance(b, int)
    )


def _from_mask(node: ir.Node) -> Activation | None:
    for z, mask in (node.inputs, node.inputs[::-1]):
        cast = mask.producer() if mask is not None else None
        if cast is None or cast.op_type != "Cast" or cast.domain != "":
            continue
        condition = _comparison(cast.inputs[0])
        if condition is not None and condition[2]:
            return _above(condition[0], condition[1], z)
    return None
