"""The linear layers of a graph that lie outside its sparse operators: attention's, lm_head, blocks left dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from transformers.pytorch_utils import Conv1D

from graph_passes.custom_ops import DOMAIN, format_in
from graph_passes.formats import FfnFormat
from graph_passes.patterns.linear import find_linears
from graph_passes.weights.packed_names import parts_of
from prosparse_export.export.rounded_reference import stored_arrays
from prosparse_export.validation.float64_reference import linear_error, stored_values
from prosparse_models import Checkpoint

__all__ = ["LinearSite", "comparable", "exact_linear", "linear_sites", "load_linear"]

_ROWS = 2048  # of a matrix in float64 at a time: an lm_head of 32,000 rows would take a gigabyte


@dataclass(frozen=True)
class LinearSite:
    """One linear layer.

    Attributes:
        module: PyTorch's module, or several whose matrices are packed into one, as graph_passes.parts_of reads it.
        op: ``Linear*``, MatMul or Gemm.
        weights: the format of its matrix.
        position: place of its node in the graph.
        x: name of the input ``[..., in]``.
        y: name of the output ``[..., out]``.
        stored: initializers of the matrix: weights and, for i8 and i4, scales.
        transposed: the matrix is stored ``[in, out]``.
        bias: initializer of the bias; "" if there is none.
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


def linear_sites(graph: onnx.ModelProto, model: torch.nn.Module) -> list[LinearSite]:
    """Return the linear layers of ``graph`` that are named as one of ``model``'s matrices, in the graph's order."""
    modules = {name for name, module in model.named_modules() if _has_matrix(module)}
    known = {node.name for node in graph.graph.node if modules.issuperset(parts_of(node.name))}
    sites = []
    for position, node in enumerate(graph.graph.node):
        if node.domain == DOMAIN and node.op_type.startswith("Linear") and node.name in known:
            weights = format_in(node.op_type)
            x, *stored, bias = node.input
            sites.append(
                LinearSite(node.name, node.op_type, weights, position, x, node.output[0], tuple(stored), False, bias)
            )
    places = {node.name: position for position, node in enumerate(graph.graph.node)}
    for linear in find_linears(ir.from_proto(graph).graph).values():
        product = linear.matmul
        if (product.name or "") not in known or linear.weight.dtype != ir.DataType.FLOAT:
            continue
        name, matrix = product.name or "", linear.weight.value.name or ""
        bias = (linear.bias.name or "") if linear.bias is not None else ""
        x, y = linear.x.name or "", linear.output.name or ""
        site = LinearSite(name, product.op_type, "f32", places[name], x, y, (matrix,), linear.in_major, bias)
        sites.append(site)
    return sorted(sites, key=lambda site: site.position)


def _has_matrix(module: torch.nn.Module) -> bool:
    """Tell whether a module is a linear layer: one that only holds others' may give its name to a product."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 2


def comparable(model: torch.nn.Module, linears: Sequence[str]) -> bool:
    """Tell whether ``linears`` are module paths of linear layers of ``model``."""
    modules = dict(model.named_modules())
    return bool(linears) and all(name in modules and _has_matrix(modules[name]) for name in linears)


def load_linear(
    checkpoint: Checkpoint, site: LinearSite
) -> tuple[dict[str, NDArray[np.generic]], NDArray[np.float32], NDArray[np.float32]]:
    """Return what the artifact should store for a linear layer, by initializer, and the stored numbers.

    Args:
        checkpoint: PyTorch with the checkpoint's own weights.
        site: the layer.

    Returns:
        the initializers; the matrix ``[out, in]``; the bias ``[out]``, zeros where there is none.
    """
    parts = [_part(checkpoint, module, site.weights) for module in parts_of(site.module)]
    if len(parts) == 1:  # no copy
        arrays, matrix, bias = parts[0]
    else:
        arrays = [np.concatenate(pieces) for pieces in zip(*(part[0] for part in parts), strict=True)]
        matrix, bias = (np.concatenate([part[i] for part in parts]) for i in (1, 2))
    if site.transposed:
        arrays = [arrays[0].T]
    expected = dict(zip(site.stored, arrays, strict=True))
    if site.bias:
        expected[site.bias] = bias
    return expected, matrix, bias


def _part(
    checkpoint: Checkpoint, module: str, weights: FfnFormat
) -> tuple[list[NDArray[np.generic]], NDArray[np.float32], NDArray[np.float32]]:
    """Return one module's matrix as it is stored, its numbers ``[out, in]`` and its bias ``[out]``."""
    layer = checkpoint.model.get_submodule(module)
    weight = layer.weight.detach() if checkpoint.weights is None else checkpoint.weights.values(layer.weight)
    if isinstance(layer, Conv1D):  # [in, out]
        weight = weight.T
    arrays = stored_arrays(weight, weights, is_down=False)
    bias = getattr(layer, "bias", None)
    values = np.zeros(len(weight), np.float32) if bias is None else bias.detach().float().numpy()
    return arrays, stored_values(arrays, weight.shape[1]), values


def exact_linear(
    x: NDArray[np.float64], matrix: NDArray[np.float32], bias: NDArray[np.float32], *, rounds: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return ``x @ matrix.T + bias`` in float64, ``[tokens, out]``, and how far float32 arithmetic may be from it.

    Args:
        x: ``[tokens, in]``.
        matrix: ``[out, in]``.
        bias: ``[out]``.
        rounds: activations are rounded to 16 bits, as the i8 and i4 kernels do.
    """
    parts = [
        linear_error(x, matrix[i : i + _ROWS].astype(np.float64), bias[i : i + _ROWS].astype(np.float64), rounds)
        for i in range(0, len(matrix), _ROWS)
    ]
    values, bounds = zip(*parts, strict=True)
    return np.concatenate(values, -1), np.concatenate(bounds, -1)
