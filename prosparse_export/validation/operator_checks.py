"""Check each operator by itself: its weights bit for bit, its outputs against float64.

Logits hide small faults: one wrong scale in one layer may change them less than rounding does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from graph_passes.custom_ops import ATTENTION, DOMAIN, accuracy_level
from graph_passes.formats import Format, is_quantized
from graph_passes.patterns.linear import find_linears
from prosparse_export.analysis.graph_bytes import initializer_bytes
from prosparse_export.export.rounded_reference import stored_arrays
from prosparse_export.progress import ProgressCallback
from prosparse_export.validation.activation_capture import ActivationCapture
from prosparse_export.validation.float64_reference import exact_ffn, load_weights
from prosparse_export.validation.linear_nodes import are_linear, exact_linear, find_linear_nodes, load_linear
from prosparse_export.validation.rope_cache import expected_caches
from prosparse_export.validation.validation_target import ValidationTarget
from prosparse_models import Checkpoint

__all__ = ["OperatorCheck", "StoredWeights", "check_operators", "layer_of", "operators_in"]

_STORED_NAME = re.compile(r"(.+)\.weight\.(f16|bf16|i8|i4|nl4)")
_NUMBER = re.compile(r"\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class OperatorCheck:
    """An operator compared with float64 on its own inputs.

    Attributes:
        layer: number of its layer; None outside layers.
        module: the PyTorch module that it replaces.
        op: the operator.
        tokens: inputs compared.
        max_abs_diff: largest difference from float64; NaN if an output is NaN.
        worst: largest difference as a multiple of its bound.
        wrong_weights: initializers that differ from the checkpoint in any bit.
    """

    layer: int | None
    module: str
    op: str
    tokens: int
    max_abs_diff: float
    worst: float
    wrong_weights: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the weights are the checkpoint's and every output is within its bound."""
        return not self.wrong_weights and self.worst <= 1.0


@dataclass(frozen=True)
class StoredWeights:
    """Initializers compared with the checkpoint.

    Attributes:
        compared: number of initializers compared.
        share: their share of all initializers' bytes; the rest are constants that the export computed.
        wrong: names of those outside operators (embedding, norms, biases) that differ in any bit.
    """

    compared: int
    share: float
    wrong: tuple[str, ...]


def layer_of(module: str) -> int | None:
    """Return the layer number in a module path, such as 2 for ``model.layers.2.mlp``; None without a number."""
    match = _NUMBER.search(module)
    return None if match is None else int(match[1])


def operators_in(model: onnx.ModelProto) -> int:
    """Return the number of sparse operators and linear layers in a graph."""
    ours = sum(1 for node in model.graph.node if node.domain == DOMAIN and node.op_type not in ATTENTION)
    return ours + len(find_linears(ir.from_proto(model).graph))


def check_operators(
    checkpoint: Checkpoint,
    target: ValidationTarget,
    ids: NDArray[np.int64],
    *,
    threads: int | None,
    progress: ProgressCallback,
) -> tuple[tuple[OperatorCheck, ...], StoredWeights]:
    """Compare every operator, run by the library, with float64 on its own inputs, and every weight bit for bit.

    Args:
        checkpoint: PyTorch with the checkpoint's own weights, in memory or in their files.
        target: the artifact.
        ids: text, ``[tokens]``: a prefill of two thirds of it, then one token at a time.
        threads: intra-op threads.
        progress: called with each stage.
    """
    progress("operators", 0, 0)
    nodes = [node for node in target.nodes if are_linear(checkpoint.model, target.linears.get(node.module, []))]
    linears = find_linear_nodes(target.graph, checkpoint.model)
    seen: dict[str, bool] = {}
    results: list[OperatorCheck] = []
    if nodes or linears:
        fused = target.fused_attention
        capture = ActivationCapture(target.path, nodes, linears, library=True, threads=threads, fused=fused)
        captured = capture.run(ids, first=max(len(ids) * 2 // 3, 1))
        del capture
        total = len(nodes) + len(linears)
        for i, node in enumerate(nodes):
            progress("operators", i, total)
            modules = target.linears[node.module]
            read = target.initializer
            stored, exact = load_weights(checkpoint.model, modules, node, checkpoint.weights, read, target.compensated)
            rounds = is_quantized(node.weights)
            x = captured.inputs[i].astype(np.float64)
            level = accuracy_level(node.node.op_type)
            expected = exact_ffn(x, exact, node.activation, node.threshold, rounds=rounds, level=level)
            wrong = _compare(target, stored, seen)
            results.append(_check(node.layer, node.module, node.node.op_type, captured.outputs[i], expected, wrong))
        for i, linear in enumerate(linears):
            progress("operators", len(nodes) + i, total)
            stored, matrix, bias = load_linear(checkpoint, linear, target.initializer, target.compensated)
            x = captured.linear_inputs[i].astype(np.float64)
            level = accuracy_level(linear.op)
            expected = exact_linear(x, matrix, bias, rounds=is_quantized(linear.weights), level=level)
            wrong = _compare(target, stored, seen)
            layer = layer_of(linear.module)
            results.append(_check(layer, linear.module, linear.op, captured.linear_outputs[i], expected, wrong))
    rest = [name for stored in _outside_operators(checkpoint, target, seen) for name in _compare(target, stored, seen)]
    sizes = {tensor.name: initializer_bytes(tensor) for tensor in target.graph.graph.initializer}
    share = sum(sizes[name] for name in seen if name in sizes) / max(sum(sizes.values()), 1)
    return tuple(results), StoredWeights(len(seen), share, tuple(rest))


def _check(
    layer: int | None,
    module: str,
    op: str,
    actual: NDArray[np.float32],
    exact: tuple[NDArray[np.float64], NDArray[np.float64]],
    wrong: tuple[str, ...],
) -> OperatorCheck:
    expected, bound = exact
    difference = np.abs(actual - expected)
    worst = float((difference / np.maximum(bound, np.finfo(np.float64).tiny)).max())
    return OperatorCheck(layer, module, op, len(actual), float(difference.max()), worst, wrong)


def _compare(
    target: ValidationTarget, stored: Mapping[str, NDArray[np.generic]], seen: dict[str, bool]
) -> tuple[str, ...]:
    """Return the names of initializers that differ from ``stored`` in any bit; each initializer is read once."""
    for name, expected in stored.items():
        if name in seen:
            continue
        try:
            actual = target.initializer(name)
        except KeyError:
            seen[name] = False
            continue
        seen[name] = actual.shape == expected.shape and np.array_equal(_bytes_of(actual), _bytes_of(expected))
    return tuple(name for name in stored if not seen[name])


def _bytes_of(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _outside_operators(
    checkpoint: Checkpoint, target: ValidationTarget, seen: Mapping[str, bool]
) -> Iterator[dict[str, NDArray[np.generic]]]:
    """Yield the expected initializers outside operators: embeddings, cos/sin caches, float32 parameters by name."""
    parameters = dict(checkpoint.model.named_parameters(remove_duplicate=False))
    for tensor in target.graph.graph.initializer:
        if tensor.name in seen:
            continue
        caches = expected_caches(
            checkpoint.model, tensor.name, target.positions or (tensor.dims[0] if tensor.dims else 0)
        )
        if caches:
            own_cache = target.initializer(tensor.name)
            yield {tensor.name: next((c for c in caches if np.array_equal(c, own_cache)), caches[0])}
            continue
        match = _STORED_NAME.fullmatch(tensor.name)
        path = f"{match[1]}.weight" if match else tensor.name
        if path not in parameters or (match is None and tensor.data_type != onnx.TensorProto.FLOAT):
            continue
        own = parameters[path]
        values = own.detach() if checkpoint.weights is None else checkpoint.weights.values(own)
        arrays: Sequence[NDArray[np.generic]] = [values.float().numpy()]
        if match:
            weights = cast("Format", match[2])
            scales = target.initializer(f"{tensor.name}_scale") if is_quantized(weights) else None
            arrays = stored_arrays(values, weights, is_down=False, scales=scales)
        yield dict(zip([tensor.name, f"{tensor.name}_scale"], arrays, strict=False))
