"""Each operator by itself: its weights bit for bit, its results against float64.

Logits hide small faults: what one wrong scale in one layer does to them may be less than what rounding does.
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

from graph_passes.custom_ops import DOMAIN
from graph_passes.formats import Format, is_quantized
from graph_passes.patterns.linear import find_linears
from prosparse_export.analysis.ffn_nodes import initializer
from prosparse_export.analysis.graph_bytes import initializer_bytes
from prosparse_export.export.rounded_reference import stored_arrays
from prosparse_export.progress import ProgressCallback
from prosparse_export.validation.activation_capture import Probe
from prosparse_export.validation.float64_reference import exact_ffn, load_weights
from prosparse_export.validation.linear_nodes import comparable, exact_linear, linear_sites, load_linear
from prosparse_export.validation.rotary_tables import expected_tables
from prosparse_export.validation.validation_target import Subject
from prosparse_models import Checkpoint

__all__ = ["OperatorCheck", "StoredWeights", "check_operators", "layer_of", "operators_in"]

_ELSEWHERE = re.compile(r"(.+)\.weight\.(f16|bf16|i8|i4)")
_NUMBER = re.compile(r"\.(\d+)(?:\.|$)")


@dataclass(frozen=True)
class OperatorCheck:
    """An operator against float64 on its own inputs.

    Attributes:
        layer: number of the layer that it belongs to; None outside layers.
        module: the PyTorch module that it replaces.
        op: the operator.
        tokens: inputs compared.
        max_abs_diff: largest difference from float64; NaN if one is not a number.
        worst: largest difference as a share of the bound that error analysis gives for that very number.
        wrong_weights: initializers that are not the checkpoint's, bit for bit.
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
        """Weights are the checkpoint's and every number is within its bound."""
        return not self.wrong_weights and self.worst <= 1.0


@dataclass(frozen=True)
class StoredWeights:
    """Initializers against the checkpoint.

    Attributes:
        compared: how many were.
        share: of the initializers' bytes; the rest are constants that the export computed.
        wrong: names of those outside operators (embedding, norms, biases) that differ in any bit.
    """

    compared: int
    share: float
    wrong: tuple[str, ...]


def layer_of(module: str) -> int | None:
    """Return the number in a module's path, such as 2 for ``model.layers.2.mlp``; None if there is none."""
    match = _NUMBER.search(module)
    return None if match is None else int(match[1])


def operators_in(model: onnx.ModelProto) -> int:
    """Return how many sparse operators and linear layers a graph has."""
    ours = sum(1 for node in model.graph.node if node.domain == DOMAIN)
    return ours + len(find_linears(ir.from_proto(model).graph))


def check_operators(
    checkpoint: Checkpoint,
    subject: Subject,
    ids: NDArray[np.int64],
    *,
    threads: int | None,
    progress: ProgressCallback,
) -> tuple[tuple[OperatorCheck, ...], StoredWeights]:
    """Hold every operator, with the library, against float64 on its own inputs, and every weight against its bits.

    Args:
        checkpoint: PyTorch with the checkpoint's own weights; they may lie in their files.
        subject: the artifact.
        ids: some text, ``[tokens]``: two thirds of it go in at once, the rest one by one.
        threads: intra-op threads.
        progress: called with each stage.
    """
    progress("operators", 0, 0)
    nodes = [node for node in subject.nodes if comparable(checkpoint.model, subject.linears.get(node.module, []))]
    sites = linear_sites(subject.graph, checkpoint.model)
    seen: dict[str, bool] = {}
    results: list[OperatorCheck] = []
    if nodes or sites:
        fused = subject.fused_attention
        probe = Probe(subject.path, nodes, sites, library=True, threads=threads, fused=fused)
        trace = probe.run(ids, first=max(len(ids) * 2 // 3, 1))
        del probe
        total = len(nodes) + len(sites)
        for i, node in enumerate(nodes):
            progress("operators", i, total)
            linears = subject.linears[node.module]
            stored, exact = load_weights(checkpoint.model, linears, node, checkpoint.weights)
            rounds = is_quantized(node.weights)
            x = trace.inputs[i].astype(np.float64)
            expected = exact_ffn(x, exact, node.activation, node.threshold, rounds=rounds)
            wrong = _compare(subject, stored, seen)
            results.append(_check(node.layer, node.module, node.node.op_type, trace.outputs[i], expected, wrong))
        for i, site in enumerate(sites):
            progress("operators", len(nodes) + i, total)
            stored, matrix, bias = load_linear(checkpoint, site)
            x = trace.site_inputs[i].astype(np.float64)
            expected = exact_linear(x, matrix, bias, rounds=is_quantized(site.weights))
            wrong = _compare(subject, stored, seen)
            layer = layer_of(site.module)
            results.append(_check(layer, site.module, site.op, trace.site_outputs[i], expected, wrong))
    rest = [name for stored in _elsewhere(checkpoint, subject, seen) for name in _compare(subject, stored, seen)]
    sizes = {tensor.name: initializer_bytes(tensor) for tensor in subject.graph.graph.initializer}
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


def _compare(subject: Subject, stored: Mapping[str, NDArray[np.generic]], seen: dict[str, bool]) -> tuple[str, ...]:
    """Return the names of initializers that differ from ``stored`` in any bit; each is read once."""
    for name, expected in stored.items():
        if name in seen:
            continue
        try:
            actual = initializer(subject.graph, subject.path.parent, name)
        except KeyError:
            seen[name] = False
            continue
        seen[name] = actual.shape == expected.shape and np.array_equal(_bytes_of(actual), _bytes_of(expected))
    return tuple(name for name in stored if not seen[name])


def _bytes_of(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _elsewhere(
    checkpoint: Checkpoint, subject: Subject, seen: Mapping[str, bool]
) -> Iterator[dict[str, NDArray[np.generic]]]:
    """Yield what initializers outside the operators should hold: embeddings, tables of rotary ones, float32 by name."""
    parameters = dict(checkpoint.model.named_parameters(remove_duplicate=False))
    for tensor in subject.graph.graph.initializer:
        if tensor.name in seen:
            continue
        tables = expected_tables(
            checkpoint.model, tensor.name, subject.positions or (tensor.dims[0] if tensor.dims else 0)
        )
        if tables:
            own_table = initializer(subject.graph, subject.path.parent, tensor.name)
            yield {tensor.name: next((t for t in tables if np.array_equal(t, own_table)), tables[0])}
            continue
        match = _ELSEWHERE.fullmatch(tensor.name)
        path = f"{match[1]}.weight" if match else tensor.name
        if path not in parameters or (match is None and tensor.data_type != onnx.TensorProto.FLOAT):
            continue
        own = parameters[path]
        values = own.detach() if checkpoint.weights is None else checkpoint.weights.values(own)
        arrays: Sequence[NDArray[np.generic]] = (
            stored_arrays(values, cast("Format", match[2]), is_down=False) if match else [values.float().numpy()]
        )
        yield dict(zip([tensor.name, f"{tensor.name}_scale"], arrays, strict=False))
