"""The kernels in onnxruntime: equal to their ONNX bodies and to float64, for any threads and shapes."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from support import operator_cases
from support.graphs import weights_model
from support.kernels import U, gamma, session

from graph_passes import custom_ops
from prosparse_export import register
from prosparse_export.runtime.operator_library import library_info, library_path

GATED, UNGATED = custom_ops.sparse_gated_ffn("f32"), custom_ops.sparse_ffn("f32")
COMBINATIONS = [(GATED, a) for a in sorted(custom_ops.GATED_ACTIVATIONS)]
COMBINATIONS += [(UNGATED, a) for a in sorted(custom_ops.UNGATED_ACTIVATIONS)]


def make_weights(op: str, d_model: int, d_ff: int, seed: int = 0, shift: float = 0.0) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    names = (["gate"] if op == GATED else []) + ["up", "down"]
    weights = {}
    for name in names:
        weights[f"w_{name}"] = rng.standard_normal((d_ff, d_model)).astype(np.float32)
        weights[f"b_{name}"] = rng.standard_normal(d_model if name == "down" else d_ff).astype(np.float32)
    weights["b_gate" if op == GATED else "b_up"] -= np.float32(shift)
    return weights


def exact(
    weights: dict[str, NDArray[np.float32]], x: NDArray[np.float32], activation: str, threshold: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The operator in float64, and how far float32 may be from it (forward error analysis)."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    x64 = x.astype(np.float64)
    first = "gate" if "w_gate" in w else "up"
    d_model, d_ff = w["w_up"].shape[1], w["w_up"].shape[0]
    t = float(np.float32(threshold))

    def linear(name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        value = x64 @ w[f"w_{name}"].T + w[f"b_{name}"]
        return value, gamma(d_model + 3) * (np.abs(x64) @ np.abs(w[f"w_{name}"]).T + np.abs(w[f"b_{name}"]))

    z, z_error = linear(first)
    a = np.where(z <= t, 0.0, z)
    # Within rounding of the threshold either side is right: the whole neuron enters the bound.
    a_error = np.where(np.abs(z - t) <= z_error, np.abs(z) + z_error, np.where(a == 0, 0.0, z_error))
    if activation == "silu":  # its slope is 1.1 at most; Exp, Add and Div round, the first by 2 units in the last place
        a = z / (1 + np.exp(-z))
        a_error = 1.1 * z_error + 8 * U * np.abs(a)
        near = np.abs(np.abs(a) - t) <= a_error
        a = np.where(np.abs(a) <= t, 0.0, a)
        a_error = np.where(near, t + 2 * a_error, np.where(a == 0, 0.0, a_error))
    if activation == "relu2":
        a_error = 2 * np.abs(a) * a_error + a_error**2 + U * a**2
        a = a**2
    v, v_error = linear("up") if first == "gate" else (np.ones_like(a), np.zeros_like(a))
    if activation == "drelu":
        v = np.maximum(v, 0.0)
    h = a * v
    h_error = a_error * (np.abs(v) + v_error) + np.abs(a) * v_error + U * np.abs(h)
    y = h @ w["w_down"] + w["b_down"]
    magnitude = (np.abs(h) + h_error) @ np.abs(w["w_down"]) + np.abs(w["b_down"])
    return y, h_error @ np.abs(w["w_down"]) + gamma(d_ff + 2) * magnitude


def assert_within(actual: NDArray[np.float32], expected: NDArray[np.float64], bound: NDArray[np.float64]) -> None:
    assert actual.shape == expected.shape
    bad = ~(np.abs(actual - expected) <= bound)  # a NaN counts
    assert not bad.any(), f"{bad.sum()} of {bad.size} beyond the bound, worst {np.nanmax(np.abs(actual - expected))}"


@pytest.mark.parametrize(("op", "activation"), COMBINATIONS)
@pytest.mark.parametrize("threshold", [0.0, 0.75])
@pytest.mark.parametrize(("d_model", "d_ff"), [(1, 1), (7, 5), (64, 100), (300, 257)])
def test_equals_body_and_float64(op: str, activation: str, threshold: float, d_model: int, d_ff: int) -> None:
    weights = make_weights(op, d_model, d_ff)
    model = weights_model(op, weights, 2, activation=activation, threshold=threshold)
    onnx.checker.check_model(model, full_check=True)
    kernel, body = session(model, library=True), session(model, library=False)
    for n in (0, 1, 2, 9, 130):
        x = np.random.default_rng(n).standard_normal((n, d_model)).astype(np.float32)
        expected, bound = exact(weights, x, activation, threshold)
        assert_within(kernel.run(None, {"x": x})[0], expected, bound)
        assert_within(body.run(None, {"x": x})[0], expected, bound)


def test_the_two_paths_are_not_the_same_code() -> None:
    """Poison in rows of inactive neurons: the kernel must not read them, the dense body must."""
    weights = make_weights(GATED, 16, 32)
    weights["b_gate"][:] = -1e6
    weights["b_gate"][3] = 1e6
    weights["w_up"][5] = np.nan
    model = weights_model(GATED, weights, 2, activation="relu", threshold=0.0)
    x = np.ones((2, 16), np.float32)
    assert np.isfinite(session(model, library=True).run(None, {"x": x})[0]).all()
    assert np.isnan(session(model, library=False).run(None, {"x": x})[0]).all()


@pytest.mark.parametrize("library", [True, False])
def test_boundary_is_zero_and_nan_stays(library: bool) -> None:
    t = np.float32(0.1)
    z = np.array([t, np.nextafter(t, np.float32(1)), np.nextafter(t, np.float32(0)), np.nan], np.float32)
    one, zero = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    weights = {"w_up": one, "b_up": zero, "w_down": one, "b_down": zero}
    model = weights_model(UNGATED, weights, 2, activation="fatrelu", threshold=float(t))
    y = session(model, library=library).run(None, {"x": z[:, None]})[0][:, 0]
    np.testing.assert_array_equal(y, np.array([0.0, z[1], 0.0, np.nan], np.float32))


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_ranks(rank: int) -> None:
    weights = make_weights(UNGATED, 12, 30)
    x = np.random.default_rng(0).standard_normal((2, 3, 1, 12)[-rank:]).astype(np.float32)
    model = weights_model(UNGATED, weights, rank, activation="relu", threshold=0.0)
    expected, bound = exact(weights, x, "relu", 0.0)
    assert_within(session(model, library=True).run(None, {"x": x})[0], expected, bound)


@pytest.mark.parametrize("op", [GATED, UNGATED])
def test_same_bits_for_any_threads(op: str) -> None:
    weights = make_weights(op, 512, 1000, shift=20.0)
    model = weights_model(op, weights, 2, activation="relu", threshold=0.0)
    x = np.random.default_rng(0).standard_normal((37, 512)).astype(np.float32)
    one = session(model, library=True, threads=1)
    expected = one.run(None, {"x": x})[0]
    assert (np.abs(expected - weights["b_down"]).max(-1) > 0).sum() > 0
    for threads in (2, 3, 4):
        other = session(model, library=True, threads=threads)
        for _ in range(3):
            np.testing.assert_array_equal(other.run(None, {"x": x})[0], expected)
    for n in (1, 2, 12, 13):
        alone = one.run(None, {"x": x[:n]})[0]
        np.testing.assert_array_equal(session(model, library=True, threads=2).run(None, {"x": x[:n]})[0], alone)


def test_concurrent_runs_of_one_session() -> None:
    weights = make_weights(GATED, 64, 256)
    shared = session(weights_model(GATED, weights, 2, activation="relu", threshold=0.0), library=True)
    inputs = [np.random.default_rng(i).standard_normal((5, 64)).astype(np.float32) for i in range(4)]
    expected = [shared.run(None, {"x": x})[0] for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(50):
            if not np.array_equal(shared.run(None, {"x": inputs[i]})[0], expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def test_external_data(tmp_path: Path) -> None:
    weights = make_weights(GATED, 64, 128)
    model = weights_model(GATED, weights, 2, activation="relu", threshold=0.0)
    x = np.ones((3, 64), np.float32)
    expected = session(model, library=True).run(None, {"x": x})[0]
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    np.testing.assert_array_equal(session(tmp_path / "m.onnx", library=True).run(None, {"x": x})[0], expected)


def test_says_what_is_wrong_with_an_input_and_goes_on() -> None:
    weights = make_weights(UNGATED, 16, 32)
    model = weights_model(UNGATED, weights, 2, activation="relu", threshold=0.0)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    running = session(model, library=True)
    for shape, shown in (((2, 15), "[2, 15]"), ((), "[]")):
        with pytest.raises(Exception, match="SparseFFNF32") as caught:
            running.run(None, {"x": np.zeros(shape, np.float32)})
        assert f"x: expected shape [..., 16], got {shown}" in str(caught.value)
    assert running.run(None, {"x": np.zeros((2, 16), np.float32)})[0].shape == (2, 16)


_CHILD = """
import json, sys
import numpy as np, onnxruntime
from prosparse_export import register
from prosparse_export.runtime.operator_library import library_info
options = onnxruntime.SessionOptions()
register(options)
model = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
x = np.load(sys.argv[2])
np.save(sys.argv[3], model.run(None, {"x": x})[0])
print(json.dumps(library_info().isa_used))
"""


def run_child(tmp_path: Path, isa: str) -> subprocess.CompletedProcess[str]:
    arguments = [str(tmp_path / name) for name in ("m.onnx", "x.npy", f"y-{isa}.npy")]
    environment = {**os.environ, "PROSPARSE_ISA": isa}
    command = [sys.executable, "-c", _CHILD, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_every_supported_isa_runs_when_forced(tmp_path: Path) -> None:
    weights = make_weights(GATED, 100, 300, shift=8.0)
    onnx.save(weights_model(GATED, weights, 2, activation="relu", threshold=0.1), tmp_path / "m.onnx")
    x = np.random.default_rng(0).standard_normal((9, 100)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    expected, bound = exact(weights, x, "relu", 0.1)
    supported = library_info().isa_supported
    assert "scalar" in supported
    results = {}
    for isa in supported:
        child = run_child(tmp_path, isa)
        assert child.returncode == 0, child.stderr
        assert json.loads(child.stdout) == isa
        results[isa] = np.load(tmp_path / f"y-{isa}.npy")
        assert_within(results[isa], expected, bound)
    for isa in ("avx512-vnni", "avx512-bf16", "avx512-amx", "avx-vnni"):  # in f32 they are avx512 or avx2
        results.pop(isa, None)
    for one, other in itertools.combinations(results.values(), 2):  # forced variants are different code
        assert not np.array_equal(one, other)


def test_an_isa_that_cannot_run_is_an_error(tmp_path: Path) -> None:
    weights = make_weights(GATED, 4, 4)
    onnx.save(weights_model(GATED, weights, 2, activation="relu", threshold=0.0), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.zeros((1, 4), np.float32))
    child = run_child(tmp_path, "sse9")
    assert child.returncode != 0
    assert "PROSPARSE_ISA=sse9 cannot run here: this build has" in child.stderr


def test_register_is_idempotent_and_per_object() -> None:
    model = weights_model(UNGATED, make_weights(UNGATED, 4, 4), 1, activation="relu", threshold=0.0)
    del model.functions[:]
    for _ in range(2):
        options = onnxruntime.SessionOptions()
        register(options)
        register(options)
        onnxruntime.InferenceSession(model.SerializeToString(), options)
    with pytest.raises(Exception, match="SparseFFNF32"):
        onnxruntime.InferenceSession(model.SerializeToString(), onnxruntime.SessionOptions())


def test_the_library_states_the_operators_that_it_registers() -> None:
    assert sorted(library_info().operators) == sorted(custom_ops.names())
    for kind, weights in operator_cases.CASES:  # without function bodies only the library can run them
        inputs, _ = operator_cases.make(kind, weights, 32, 32, np.random.default_rng(0))
        attributes = {} if kind == "linear" else {"activation": "relu", "threshold": 0.0}
        model = weights_model(operator_cases.KINDS[kind](weights), inputs, 2, **attributes)
        del model.functions[:]
        session(model, library=True)


def test_library_exports_its_entry_points_only() -> None:
    listing = subprocess.run(
        ["nm", "-D", "--defined-only", str(library_path())], capture_output=True, text=True, check=False
    )
    if listing.returncode != 0:
        listing = subprocess.run(["nm", "-gU", str(library_path())], capture_output=True, text=True, check=True)
    names = {line.split()[-1].lstrip("_") for line in listing.stdout.splitlines() if " T " in line}
    assert names == {
        "CreateEpFactories",
        "RegisterCustomOps",
        "ReleaseEpFactory",
        "prosparse_ops_info",
        "prosparse_round_weights_2",
        "prosparse_search_scales_2",
    }
