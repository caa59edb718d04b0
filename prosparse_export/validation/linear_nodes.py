"""The linear layers outside a graph's sparse operators: attention projections, lm_head, FFNs left dense."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from transformers.pytorch_utils import Conv1D

from graph_passes.custom_ops import DOMAIN, format_in
from graph_passes.formats import FfnFormat, format_of
from graph_passes.patterns.linear import find_linears
from graph_passes.weights.packed_names import parts_of
from prosparse_export.export.rounded_reference import stored_arrays
from prosparse_export.validation.float64_reference import linear_error, stored_values
from prosparse_models import Checkpoint

__all__ = ["LinearNode", "are_linear", "exact_linear", "find_linear_nodes", "load_linear"]

_ROWS = 2048  # converted to float64 at a time: an lm_head of 32,000 rows takes a gigabyte


@dataclass(frozen=True)
class LinearNode:
    """A linear layer in a graph.

    Attributes:
        module: the PyTorch module, or several packed into one matrix, see `graph_passes.parts_of`.
        op: ``Linear*``, MatMul or Gemm.
        weights: weight format of the matrix.
        position: index of the node in the graph.
        x: name of the input ``[..., d_in]``.
        y: name of the output ``[..., d_out]``.
        stored: initializers of the matrix: weights and, for integer formats, scales.
        transposed: the matrix is stored ``[d_in, d_out]``.
        bias: initializer of the bias; "" without a bias.
    """

    module: str
    op: str
    weights: FfnFormat
    position: int
    x: str
    y: str
    stored: tuple[str, ...]
    transposed: bool
    bias: str


def find_linear_nodes(graph: onnx.ModelProto, model: torch.nn.Module) -> list[LinearNode]:
    """Return the linear layers of ``graph`` whose names are those of modules of ``model``, in graph order."""
    modules = {name for name, module in model.named_modules() if _has_matrix(module)}
    known = {node.name for node in graph.graph.node if modules.issuperset(parts_of(node.name))}
    found = []
    for position, node in enumerate(graph.graph.node):
        if node.domain == DOMAIN and node.op_type.startswith("Linear") and node.name in known:
            weights = format_in(node.op_type)
            x, *stored, bias = node.input
            found.append(
                LinearNode(node.name, node.op_type, weights, position, x, node.output[0], tuple(stored), False, bias)
            )
    positions = {node.name: position for position, node in enumerate(graph.graph.node)}
    for linear in find_linears(ir.from_proto(graph).graph).values():
        matmul = linear.matmul
        if (matmul.name or "") not in known or linear.weight.dtype != ir.DataType.FLOAT:
            continue
        name, matrix = matmul.name or "", linear.weight.value.name or ""
        bias = (linear.bias.name or "") if linear.bias is not None else ""
        x, y = linear.x.name or "", linear.output.name or ""
        found.append(LinearNode(name, matmul.op_type, "f32", positions[name], x, y, (matrix,), linear.in_major, bias))
    return sorted(found, key=lambda node: node.position)


def _has_matrix(module: torch.nn.Module) -> bool:
    """Return whether a module owns a weight matrix; a MatMul may have the name of a container module."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2


def are_linear(model: torch.nn.Module, linears: Sequence[str]) -> bool:
    """Return whether ``linears`` are module paths of linear layers of ``model``; False if empty."""
    modules = dict(model.named_modules())
    return bool(linears) and all(name in modules and _has_matrix(modules[name]) for name in linears)


def load_linear(
    checkpoint: Checkpoint,
    linear: LinearNode,
    read: Callable[[str], NDArray[np.generic]],
    compensated: Collection[str] = (),
) -> tuple[dict[str, NDArray[np.generic]], NDArray[np.float32], NDArray[np.float32]]:
    """Return the initializers that the artifact should have for a linear layer, and their values.

    Args:
        checkpoint: PyTorch with the checkpoint's own weights.
        linear: the layer.
        read: returns an initializer of the artifact; called for scales, which depend on how it was exported.
        compensated: modules whose integers are not the nearest ones, and are read too.

    Returns:
        the initializers by name; the matrix ``[d_out, d_in]``; the bias ``[d_out]``, zeros without a bias.
    """
    modules = parts_of(linear.module)
    scales = read(linear.stored[1]) if len(linear.stored) > 1 else None
    integers = read(linear.stored[0]) if any(module in compensated for module in modules) else None
    parts, first = [], 0
    for module in modules:
        known = [None if array is None else array[first:] for array in (scales, integers)]
        parts.append(_part(checkpoint, module, linear.weights, *known))
        first += len(parts[-1][1])
    if len(parts) == 1:  # no copy
        arrays, matrix, bias = parts[0]
    else:
        arrays = [np.concatenate(pieces) for pieces in zip(*(part[0] for part in parts), strict=True)]
        matrix, bias = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    if linear.transposed:
        arrays = [arrays[0].T]
    expected = dict(zip(linear.stored, arrays, strict=True))
    if linear.bias:
        expected[linear.bias] = bias
    return expected, matrix, bias


def _part(
    checkpoint: Checkpoint,
    module: str,
    weights: FfnFormat,
    scales: NDArray[np.generic] | None,
    integers: NDArray[np.generic] | None,
) -> tuple[list[NDArray[np.generic]], NDArray[np.float32], NDArray[np.float32]]:
    """Return one module's matrix as stored, its values ``[d_out, d_in]`` and its bias ``[d_out]``.

    ``scales`` and ``integers`` begin with the module's.
    """
    layer = checkpoint.model.get_submodule(module)
    weight = layer.weight.detach() if checkpoint.weights is None else checkpoint.weights.values(layer.weight)
    if isinstance(layer, Conv1D):  # [d_in, d_out]
        weight = weight.T
    own, rounded = (None if array is None else array[: len(weight)] for array in (scales, integers))
    arrays = stored_arrays(weight, weights, is_down=False, scales=own, integers=rounded)
    bias = getattr(layer, "bias", None)
    values = np.zeros(len(weight), np.float32) if bias is None else bias.detach().float().numpy()
    return arrays, stored_values(arrays, weight.shape[1], format_of(weights, is_down=False)), values


def exact_linear(
    x: NDArray[np.float64], matrix: NDArray[np.float32], bias: NDArray[np.float32], *, rounds: bool, level: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``x @ matrix.T + bias`` in float64, ``[tokens, d_out]``, and the error bound of float32 arithmetic.

    Args:
        x: ``[tokens, d_in]``.
        matrix: ``[d_out, d_in]``.
        bias: ``[d_out]``.
        rounds: activations are rounded to 16 bits, as in the kernels of integer formats.
        level: accuracy level of the operator.
    """
    parts = [
        linear_error(x, matrix[i : i + _ROWS].astype(np.float64), bias[i : i + _ROWS].astype(np.float64), rounds, level)
        for i in range(0, len(matrix), _ROWS)
    ]
    values, bounds = zip(*parts, strict=True)
    return np.concatenate(values, -1), np.concatenate(bounds, -1)
