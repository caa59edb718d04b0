"""Accuracy level 4: the body is its definition, and kernel and body are within its bound of float64."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from support.graphs import weights_model
from support.kernels import session
from support.operator_cases import KINDS, make

from graph_passes import FfnFormat, custom_ops, function_bodies
from graph_passes.custom_ops import accuracy_level, format_in, without_format
from prosparse_export.validation.float64_reference import exact_ffn, linear_error

CASES: list[tuple[str, FfnFormat]] = [
    *((kind, weights) for kind in ("gated", "ungated") for weights in ("i8", "i4", "nl4", "nl4i8")),
    ("linear", "i8"),
    ("linear", "i4"),
    ("linear", "nl4"),
]


def rounded(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The definition: 8 bits per token and group of 32, in float32."""
    cols = x.shape[-1]
    groups = np.pad(x, [(0, 0), (0, -cols % 32)]).reshape(len(x), -1, 32)
    scale = np.maximum(np.abs(groups).max(-1, keepdims=True) / np.float32(127), np.float32(2.0**-126))
    with np.errstate(invalid="ignore"):
        near = np.where(np.isinf(scale), groups, np.rint(groups / scale) * scale)
    return near.reshape(len(x), -1)[:, :cols].astype(np.float32)


def model_of(kind: str, weights: FfnFormat, inputs, activation: str, threshold: float, level: int) -> onnx.ModelProto:
    attributes = {} if kind == "linear" else {"activation": activation, "threshold": threshold}
    return weights_model(KINDS[kind](weights, level), inputs, 2, **attributes)


def check(kind: str, weights: FfnFormat, sizes: tuple[int, int, int], activation: str, threshold: float, seed: int):
    d_model, d_ff, tokens = sizes
    rng = np.random.default_rng(seed)
    inputs, exact = make(kind, weights, d_model, d_ff, rng, shift=float(rng.choice([0.0, 2.0, 30.0])))
    model = model_of(kind, weights, inputs, activation, threshold, 4)
    x = rng.standard_normal((tokens, d_model)).astype(np.float32)
    if kind == "linear":
        expected, bound = linear_error(x.astype(np.float64), exact["w"], exact["b"], True, 4)
    else:
        roles = ("gate", "up", "down") if kind == "gated" else ("up", "down")
        w = {role: exact[f"w_{role}"] for role in roles} | {f"{role}_bias": exact[f"b_{role}"] for role in roles}
        expected, bound = exact_ffn(x.astype(np.float64), w, activation, threshold, rounds=True, level=4)
    for library in (True, False):
        actual = session(model, library=library).run(None, {"x": x})[0]
        wrong = ~(np.abs(actual - expected) <= bound)  # a NaN is wrong
        case = f"{kind} {weights} {sizes} {activation} t={threshold} seed={seed} library={library}"
        assert not wrong.any(), f"{case}: off by {np.abs(actual - expected).max()}"


@pytest.mark.parametrize(("kind", "weights"), CASES)
def test_kernel_and_body_are_within_the_bound(kind: str, weights: FfnFormat) -> None:
    activations = sorted(
        {"gated": custom_ops.GATED_ACTIVATIONS, "ungated": custom_ops.UNGATED_ACTIVATIONS}.get(kind, {"none"})
    )
    for seed, sizes in enumerate([(8, 24, 1), (33, 70, 9), (64, 129, 17), (300, 100, 40), (257, 300, 131)]):
        for activation in activations:
            check(kind, weights, sizes, activation, 0.0 if seed % 2 else 0.3, seed)


def test_random_cases_of_level_4() -> None:
    """PROSPARSE_FUZZ_CASES=10000 pytest -k random_cases for the long run."""
    for seed in range(int(os.environ.get("PROSPARSE_FUZZ_CASES", "100"))):
        rng = np.random.default_rng(20_000 + seed)
        kind, weights = CASES[rng.integers(len(CASES))]
        activation = str(rng.choice(["relu", "relu2", "fatrelu", *(["drelu", "silu"] if kind == "gated" else [])]))
        sizes = tuple(int(v) for v in np.exp(rng.uniform(0, np.log([1200, 200, 150]))))
        check(kind, weights, (sizes[0], sizes[1], sizes[2]), activation, float(rng.choice([0.0, 0.01, 1.0])), seed)


@pytest.mark.parametrize("weights", ["i8", "i4"])
def test_body_rounds_as_defined(weights: FfnFormat) -> None:
    for d_model in (1, 32, 33, 100):
        inputs, exact = make("linear", weights, d_model, 20, np.random.default_rng(0))
        body = session(model_of("linear", weights, inputs, "none", 0.0, 4), library=False)
        x = np.random.default_rng(1).standard_normal((5, d_model)).astype(np.float32)
        x[1] = 0.0
        x[2, 0] = 1e-41
        x[3] *= 1e30
        expected = rounded(x).astype(np.float64) @ exact["w"].T + exact["b"]
        size = np.abs(x.astype(np.float64)) @ np.abs(exact["w"]).T + np.abs(exact["b"])
        assert (np.abs(body.run(None, {"x": x})[0] - expected) <= 1e-5 * size + 1e-30).all()
        assert body.run(None, {"x": x[:0]})[0].shape == (0, 20)
        three = session(weights_model(KINDS["linear"](weights, 4), inputs, 3), library=False)
        np.testing.assert_array_equal(three.run(None, {"x": x[None]})[0][0], body.run(None, {"x": x})[0])


@pytest.mark.parametrize("weights", ["i8", "i4"])
def test_infinite_and_nan_stay_with_their_token(weights: FfnFormat) -> None:
    inputs, _ = make("gated", weights, 64, 96, np.random.default_rng(0))
    x = np.random.default_rng(1).standard_normal((20, 64)).astype(np.float32)
    odd = x.copy()
    odd[3, 5], odd[7, 9] = np.nan, np.inf
    others = [t for t in range(20) if t not in (3, 7)]
    for library in (True, False):
        run = session(model_of("gated", weights, inputs, "relu", 0.0, 4), library=library)
        actual, alone = run.run(None, {"x": odd})[0], run.run(None, {"x": x})[0]
        assert np.isnan(actual[3]).all()
        assert not np.isfinite(actual[7]).any()
        np.testing.assert_allclose(actual[others], alone[others], rtol=0.02, atol=0.02 * np.abs(alone).max())


@pytest.mark.parametrize("weights", ["i8", "i4", "i4i8"])
def test_same_bits_for_any_threads(weights: FfnFormat) -> None:
    inputs, _ = make("gated", weights, 512, 1100, np.random.default_rng(0), shift=20.0)
    model = model_of("gated", weights, inputs, "relu", 0.0, 4)
    x = np.random.default_rng(1).standard_normal((150, 512)).astype(np.float32)
    alone = session(model, library=True, threads=1)
    expected = {n: alone.run(None, {"x": x[:n]})[0] for n in (1, 9, 29, 150)}
    for threads in (2, 3, 8):
        shared = session(model, library=True, threads=threads)
        for n in expected:
            for _ in range(3):  # the work is divided by the number of threads that earlier calls saw
                np.testing.assert_array_equal(shared.run(None, {"x": x[:n]})[0], expected[n])


def test_names() -> None:
    assert custom_ops.linear("i4", 4) == "LinearI4A8"
    assert custom_ops.sparse_gated_ffn("i4i8", 4) == "SparseGatedFFNI4I8A8"
    assert custom_ops.sparse_ffn("f32", 4) == "SparseFFNF32"  # float formats are exact
    for kind, weights in CASES:
        name = KINDS[kind](weights, 4)
        assert (format_in(name), accuracy_level(name)) == (weights, 4)
        assert without_format(name) == without_format(KINDS[kind](weights))
    with pytest.raises(function_bodies.OpsetError, match="opset 17 is too old; expected 18"):
        function_bodies.function("LinearI8A8", 17)
