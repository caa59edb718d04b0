"""One meaning of "active": counts, kernel and PyTorch agree on it for every activation, at the boundaries too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from support.graphs import weights_model
from torch import nn
from transformers.activations import ACT2FN

from graph_passes.custom_ops import GATED_ACTIVATIONS, sparse_ffn, sparse_gated_ffn
from prosparse_export.analysis.activation_counts import LayerActivity, measure_activity
from prosparse_export.runtime.operator_library import register
from prosparse_models.activation import FatReLU
from prosparse_models.approximation import ThresholdedSilu

GATED = sorted(GATED_ACTIVATIONS)
CASES = [(True, a) for a in GATED] + [(False, a) for a in GATED if a not in ("drelu", "silu")]
THRESHOLDS = (0.0, 0.25)
WIDTH = 64  # at least the number of neurons: each has a column of down_proj to itself


def pre_activations(threshold: float, *, with_nan: bool) -> tuple[np.ndarray, np.ndarray]:
    """Values of the gate on both sides of every boundary, each with a positive and a negative result of up_proj.

    silu's boundary is a magnitude, 0.25 at z = -1.02, -0.85 and 0.415; its rounding leaves 8 units in the last place
    on both sides undecided (docs/reference/operators.md), so no value is that close.
    """
    t = np.float32(threshold)
    at = [t, t + np.float32(1e-6), t - np.float32(1e-6), -t, 0.0, -0.0, 1e-15, -1e-15]
    away = [-1.278, -0.9, -0.3, -0.2, 0.2, 0.3, 0.41, 0.42, 5.0, -5.0, 20.0, -20.0, 1e4, -1e4]
    z = np.asarray([*at, *away, *([np.nan] if with_nan else [])], np.float32)
    return np.repeat(z, 2), np.tile(np.float32([1.0, -1.0]), len(z))


def rule(activation: str, z: np.ndarray, threshold: float) -> np.ndarray:
    """The specification, in float64 and worded independently: docs/reference/operators.md, "Activations"."""
    wide = z.astype(np.float64)
    with np.errstate(over="ignore"):
        size = np.abs(wide / (1 + np.exp(-wide))).astype(np.float32) if activation == "silu" else wide
    return ~(size <= threshold)


def write_model(path: Path, activation: str, threshold: float, *, gated: bool, with_nan: bool) -> Path:
    """A graph of one FFN with the `pre_activations` for token 0; neuron k's row of down_proj has a NaN in column k."""
    z, u = pre_activations(threshold, with_nan=with_nan)
    neurons = len(z)
    assert neurons <= WIDTH
    bias = np.zeros(neurons, np.float32)

    def first_column(values: np.ndarray) -> np.ndarray:
        matrix = np.zeros((neurons, WIDTH), np.float32)
        matrix[:, 0] = values
        return matrix

    gate = {"w_gate": first_column(z), "b_gate": bias} if gated else {}
    up = {"w_up": first_column(u if gated else z), "b_up": bias}
    down = np.zeros((neurons, WIDTH), np.float32)
    np.fill_diagonal(down, np.nan)
    op = sparse_gated_ffn("f32") if gated else sparse_ffn("f32")
    inputs = {**gate, **up, "w_down": down, "b_down": np.zeros(WIDTH, np.float32)}
    model = weights_model(op, inputs, 3, activation=activation, threshold=threshold)
    one_hot = numpy_helper.from_array(np.eye(1, WIDTH, dtype=np.float32), "embedding")
    model.graph.initializer.append(one_hot)
    model.graph.node.insert(0, helper.make_node("Gather", ["embedding", "input_ids"], ["x"]))
    del model.graph.input[:]
    model.graph.input.append(helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"]))
    onnx.save(model, path)
    return path


def counts(path: Path, tokens: int = 1) -> LayerActivity:
    return measure_activity(path, [np.zeros(tokens, np.int64)], threads=1).layers[0]


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(("gated", "activation"), CASES)
def test_counts_follow_the_specification(gated: bool, activation: str, threshold: float, tmp_path: Path) -> None:
    z, u = pre_activations(threshold, with_nan=True)
    found = counts(write_model(tmp_path / "m.onnx", activation, threshold, gated=gated, with_nan=True), tokens=3)
    active = rule(activation, z, threshold)
    assert 0 < active.sum() < len(z)
    assert active[-1]  # the NaN
    assert found.per_neuron.tolist() == (3 * active).tolist()
    assert found.per_token.tolist() == [active.sum()] * 3
    assert found.shared.tolist() == [-1, active.sum(), active.sum()]
    nonzero = active & ~((u <= 0) & ~np.isnan(z)) if activation == "drelu" else active
    assert found.zeros.tolist() == [(~nonzero).sum()] * 3
    assert found.sparsity == pytest.approx(1 - nonzero.mean())
    assert found.skipped == pytest.approx(1 - active.mean())
    assert (found.skipped < found.sparsity) == (activation == "drelu")


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(("gated", "activation"), CASES)
def test_the_kernel_reads_the_rows_of_active_neurons(
    gated: bool, activation: str, threshold: float, tmp_path: Path
) -> None:
    """A NaN in a row of down_proj shows whether the row was read: also where dReLU's second ReLU makes its factor 0."""
    path = write_model(tmp_path / "m.onnx", activation, threshold, gated=gated, with_nan=False)
    options = onnxruntime.SessionOptions()
    register(options)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"input_ids": np.zeros((1, 1), np.int64)})
    found = counts(path)
    assert np.isnan(y[0, 0, : found.d_ff]).tolist() == (found.per_neuron == 1).tolist()


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("activation", GATED)
def test_pytorch_gates_are_zero_where_neurons_are_inactive(activation: str, threshold: float) -> None:
    module: nn.Module = ThresholdedSilu(threshold) if activation == "silu" else FatReLU(threshold)
    if threshold == 0 and activation in ("relu", "relu2", "drelu"):
        module = ACT2FN["relu2" if activation == "relu2" else "relu"]
    z, _ = pre_activations(threshold, with_nan=True)
    assert (module(torch.from_numpy(z)) != 0).tolist() == rule(activation, z, threshold).tolist()
