"""Every weight format: function body, kernel and float64 agree on the same stored weights, also in random cases."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from support.graphs import weights_model
from support.kernels import gamma, session
from support.operator_cases import CASES, KIND_FORMATS, KINDS, make

from graph_passes import custom_ops, dequantize, formats, quantize
from graph_passes.weights.group_scales import WeightRangeError

STEP = 0.52 / 32639  # half a step of 16 bits, and the roundings of the quotient
ACTIVATIONS = {
    "gated": sorted(custom_ops.GATED_ACTIVATIONS),
    "ungated": sorted(custom_ops.UNGATED_ACTIVATIONS),
    "linear": ["none"],
}


def steps(x: NDArray[np.float64], group: int = 32) -> NDArray[np.float64]:
    """Half a rounding step of each activation: one scale per group of 32."""
    cols = x.shape[-1]
    padded = np.pad(np.abs(x), [(0, 0), (0, -cols % group)]).reshape(len(x), -1, group)
    return np.repeat(padded.max(-1), group, axis=-1)[:, :cols] * STEP


def linear_exact(x, w, b, rounds: bool):
    step = steps(x) if rounds else np.zeros_like(x)
    value = x @ w.T + b
    bound = gamma(w.shape[1] + 6) * ((np.abs(x) + step) @ np.abs(w).T + np.abs(b)) + step @ np.abs(w).T
    return value, bound


def exact_ffn(kind: str, e, x, activation: str, threshold: float, rounds: bool):
    x = x.astype(np.float64)
    if kind == "linear":
        return linear_exact(x, e["w"], e["b"], rounds)
    first = "_gate" if kind == "gated" else "_up"
    z, z_error = linear_exact(x, e[f"w{first}"], e[f"b{first}"], rounds)
    t = float(np.float32(threshold))
    a = np.where(z <= t, 0.0, z)
    a_error = np.where(np.abs(z - t) <= z_error, np.abs(z) + z_error, np.where(a == 0, 0.0, z_error))
    if activation == "silu":
        a = z / (1 + np.exp(-z))
        a_error = 1.1 * z_error + 2.0**-21 * np.abs(a)
        near = np.abs(np.abs(a) - t) <= a_error
        a = np.where(np.abs(a) <= t, 0.0, a)
        a_error = np.where(near, t + 2 * a_error, np.where(a == 0, 0.0, a_error))
    if activation == "relu2":
        a_error = 2 * np.abs(a) * a_error + a_error**2 + 2.0**-23 * a**2
        a = a**2
    v, v_error = np.ones_like(a), np.zeros_like(a)
    if kind == "gated":
        v, v_error = linear_exact(x, e["w_up"], e["b_up"], rounds)
    if activation == "drelu":
        v = np.maximum(v, 0.0)
    h = a * v
    h_error = a_error * (np.abs(v) + v_error) + np.abs(a) * v_error + 2.0**-23 * np.abs(h)
    down = np.abs(e["w_down"])
    magnitude = (np.abs(h) + h_error) @ down + np.abs(e["b_down"])
    bound = h_error @ down + gamma(len(down) + 6) * magnitude
    if rounds:  # |integer * scale| of a group is at most its largest weight, rounded up by 8 / 7
        largest = np.array([((np.abs(h[i]) + h_error[i])[:, None] * down).max(0) for i in range(len(h))])
        cols = down.shape[1]
        padded = np.pad(largest, [(0, 0), (0, -cols % 32)]).reshape(len(h), -1, 32).max(-1)
        active = ((h != 0) | (h_error != 0)).sum(-1, keepdims=True)
        bound += np.repeat(padded, 32, -1)[:, :cols] * STEP * 128 * active * 8 / 7
    return h @ e["w_down"] + e["b_down"], bound


def check(
    kind: str,
    weights: formats.FfnFormat,
    d_model: int,
    d_ff: int,
    tokens: int,
    activation: str,
    threshold: float,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    inputs, exact = make(kind, weights, d_model, d_ff, rng, shift=float(rng.choice([0.0, 2.0, 30.0])))
    attributes = {} if kind == "linear" else {"activation": activation, "threshold": threshold}
    model = weights_model(KINDS[kind](weights), inputs, 2, **attributes)
    x = rng.standard_normal((tokens, d_model)).astype(np.float32)
    case = f"{kind} {weights} d_model={d_model} d_ff={d_ff} tokens={tokens} {activation} t={threshold} seed={seed}"
    for library in (True, False):
        actual = session(model, library=library).run(None, {"x": x})[0].astype(np.float64)
        rounds = library and formats.is_quantized(weights)
        expected, bound = exact_ffn(kind, exact, x, activation, threshold, rounds=rounds)
        assert actual.shape == expected.shape, case
        wrong = ~(np.abs(actual - expected) <= bound)  # a NaN is wrong
        assert not wrong.any(), f"{case}, library={library}: off by {np.abs(actual - expected).max()}"


@pytest.mark.parametrize(("kind", "weights"), CASES)
def test_kernel_and_body_agree_with_float64(kind: str, weights: formats.FfnFormat) -> None:
    for seed, (d_model, d_ff, tokens) in enumerate([(8, 24, 1), (33, 70, 3), (64, 129, 14), (300, 100, 2)]):
        for activation in ACTIVATIONS[kind]:
            check(kind, weights, d_model, d_ff, tokens, activation, 0.0 if seed % 2 else 0.3, seed)


def test_random_cases() -> None:
    """PROSPARSE_FUZZ_CASES=10000 pytest -k random_cases for the long run."""
    for seed in range(int(os.environ.get("PROSPARSE_FUZZ_CASES", "150"))):
        rng = np.random.default_rng(10_000 + seed)
        kind = str(rng.choice(list(KINDS)))
        weights = KIND_FORMATS[kind][rng.integers(len(KIND_FORMATS[kind]))]
        activation = str(rng.choice(ACTIVATIONS[kind]))
        d_model, d_ff, tokens = (int(v) for v in np.exp(rng.uniform(0, np.log([1200, 200, 40]))))
        check(kind, weights, d_model, d_ff, tokens, activation, float(rng.choice([0.0, 0.01, 1.0])), seed)


@pytest.mark.parametrize("weights", formats.FFN_FORMATS)
def test_same_bits_for_any_threads(weights: formats.FfnFormat) -> None:
    inputs, _ = make("gated", weights, 512, 1000, np.random.default_rng(0), shift=20.0)
    model = weights_model(custom_ops.sparse_gated_ffn(weights), inputs, 2, activation="relu", threshold=0.0)
    x = np.random.default_rng(1).standard_normal((70, 512)).astype(np.float32)
    for n in (1, 3, 29, 70):
        expected = session(model, library=True, threads=1).run(None, {"x": x[:n]})[0]
        for threads in (2, 3, 4):
            actual = session(model, library=True, threads=threads).run(None, {"x": x[:n]})[0]
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("weights", ["i8", "i4", "nl4"])
def test_quantization_rounds_to_nearest(weights: formats.Format) -> None:
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((700, 75)).astype(np.float32)
    matrix[3] = 0.0
    matrix[4, 40] = 1e-12
    integers, scales = quantize(matrix, weights)
    assert scales.dtype == np.float16
    assert integers.shape == ((700, 75) if weights == "i8" else (700, 48))
    values = dequantize(integers, scales, 75, weights)
    spec = formats.FORMAT_SPECS[weights]
    low, high = spec.levels or (0, 0)
    integer = np.array(spec.table or range(low, high + 1), np.float64)
    scale = np.repeat(scales.astype(np.float64), 32, 1)[:, :75]
    quotient = matrix / np.where(scale == 0, np.inf, scale)
    nearest = integer[np.abs(quotient[..., None] - integer).argmin(-1)] * scale
    assert (values != nearest).mean() < 1e-4  # float32's quotient may turn a tie
    assert np.linalg.norm(values - matrix) < np.linalg.norm(matrix) * {"i8": 0.006, "i4": 0.085, "nl4": 0.077}[weights]
    assert not values[3].any()
    first, second = quantize(matrix[:512], weights), quantize(matrix[512:], weights)  # the same in parts
    np.testing.assert_array_equal(np.concatenate([first[0], second[0]]), integers)


def test_weights_out_of_range_are_errors() -> None:
    for value in (np.inf, np.nan, 1e9):
        matrix = np.ones((2, 40), np.float32)
        matrix[1, 3] = value
        with pytest.raises(WeightRangeError, match="too large for i8" if value == 1e9 else "i8: expected finite"):
            quantize(matrix, "i8")


def test_bodies_pass_the_checker() -> None:
    for kind, weights in CASES:
        inputs, _ = make(kind, weights, 40, 32, np.random.default_rng(0))
        attributes = {} if kind == "linear" else {"activation": "relu", "threshold": 0.0}
        onnx.checker.check_model(weights_model(KINDS[kind](weights), inputs, 2, **attributes), full_check=True)
    assert len(set(custom_ops.names())) == 39
    assert [custom_ops.format_in(KINDS[kind](weights)) for kind, weights in CASES] == [weights for _, weights in CASES]
