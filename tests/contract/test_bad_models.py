"""A model that an operator cannot run: each kind and format says in one line what, where, what was expected and got."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from support.graphs import weights_model
from support.kernels import session
from support.operator_cases import CASES, KINDS, Arrays, make

from graph_passes import formats

# What onnxruntime puts before an operator's own words.
_PREFIX = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : (Exception during initialization: |This is an invalid model\. )?"
)
# It compares types with the operator's declaration before it makes a kernel, and words that itself.
_TYPE = "Type Error: Type 'tensor({got})' of input parameter ({what}) of operator ({op}) in node (ffn) is invalid."
D_MODEL, D_FF = 40, 32


def change(name: str, function: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], None]:
    def apply(inputs: Arrays) -> None:
        inputs[name] = function(inputs[name])

    return apply


def columns(name: str, count: int) -> Callable[[Arrays], None]:
    return change(name, lambda array: array[:, :count].copy())


def ones(name: str, shape: tuple[int, ...], dtype: type = np.float32) -> Callable[[Arrays], None]:
    return change(name, lambda _: np.ones(shape, dtype))


def typed(name: str, dtype: type) -> Callable[[Arrays], None]:
    return change(name, lambda array: array.astype(dtype))


def one_scale(name: str, row: int, group: int, value: float) -> Callable[[Arrays], None]:
    def set_one(scales: np.ndarray) -> np.ndarray:
        scales = scales.copy()
        scales[row, group] = value
        return scales

    return change(name, set_one)


WEIGHTS = [
    ("gated", "f32", columns("w_up", 8), "w_up: expected shape [32, 40] to go with w_gate [32, 40], got [32, 8]"),
    (
        "gated",
        "f32",
        change("w_down", lambda w: w.T.copy()),
        "w_down: expected shape [32, 40] to go with w_gate [32, 40], got [40, 32]",
    ),
    ("gated", "f32", ones("b_gate", (31,)), "b_gate: expected shape [32] to go with w_gate [32, 40], got [31]"),
    ("gated", "f16", change("w_gate", lambda w: w[None]), "w_gate: expected shape [d_ff, d_model], got [1, 32, 40]"),
    (
        "gated",
        "i8",
        ones("s_up", (32, 3), np.float16),
        "s_up: expected shape [32, 2] to go with w_gate [32, 40], got [32, 3]",
    ),
    ("gated", "i4", columns("w_up", 16), "w_up: expected shape [32, 32] to go with w_gate [32, 32], got [32, 16]"),
    ("gated", "i4", columns("w_gate", 24), "w_gate: expected rows of whole groups of 16 bytes, got [32, 24]"),
    ("gated", "i4", ones("b_down", (70,)), "b_down: expected shape [d_model] to go with w_gate [32, 32], got [70]"),
    ("gated", "i8", one_scale("s_up", -1, -1, np.nan), "s_up: expected finite scales, got NaN in row 31, group 1"),
    (
        "gated",
        "i4",
        one_scale("s_down", 0, 0, -np.inf),
        "s_down: expected finite scales, got infinity in row 0, group 0",
    ),
    (
        "gated",
        "i4i8",
        columns("w_down", 39),
        "w_down: expected shape [32, 40] to go with w_gate [32, 32], got [32, 39]",
    ),
    ("ungated", "i4i8", columns("w_up", 16), "b_down: expected shape [d_model] to go with w_up [32, 16], got [40]"),
    ("ungated", "i4i8", one_scale("s_down", 1, 1, np.nan), "s_down: expected finite scales, got NaN in row 1, group 1"),
    ("ungated", "f32", columns("w_down", 39), "w_down: expected shape [32, 40] to go with w_up [32, 40], got [32, 39]"),
    ("ungated", "bf16", ones("b_down", (32,)), "b_down: expected shape [40] to go with w_up [32, 40], got [32]"),
    ("ungated", "f16", ones("w_up", (32,), np.float16), "w_up: expected shape [d_ff, d_model], got [32]"),
    (
        "ungated",
        "i8",
        ones("s_down", (40, 2), np.float16),
        "s_down: expected shape [32, 2] to go with w_up [32, 40], got [40, 2]",
    ),
    (
        "ungated",
        "i4",
        ones("s_up", (32, 4), np.float16),
        "s_up: expected shape [32, 2] to go with w_up [32, 32], got [32, 4]",
    ),
    ("ungated", "i8", one_scale("s_up", 3, 0, np.inf), "s_up: expected finite scales, got infinity in row 3, group 0"),
    ("linear", "f32", change("w", lambda w: w[..., None]), "w: expected shape [d_out, d_in], got [32, 40, 1]"),
    ("linear", "bf16", change("w", lambda w: w[:0]), "w: expected shape [d_out, d_in], got [0, 40]"),
    ("linear", "f16", ones("b", (40,)), "b: expected shape [32] to go with w [32, 40], got [40]"),
    ("linear", "i8", ones("s", (32, 3), np.float16), "s: expected shape [32, 2] to go with w [32, 40], got [32, 3]"),
    ("linear", "i4", columns("w", 20), "w: expected rows of whole groups of 16 bytes, got [32, 20]"),
    ("linear", "i4", ones("s", (31, 2), np.float16), "s: expected shape [32, 2] to go with w [32, 32], got [31, 2]"),
    ("linear", "i4", one_scale("s", 7, 1, np.nan), "s: expected finite scales, got NaN in row 7, group 1"),
]
TYPES = [
    ("gated", "bf16", "w_gate", np.float16, "float16"),
    ("gated", "i8", "w_down", np.uint8, "uint8"),
    ("gated", "i4i8", "w_up", np.int8, "int8"),
    ("ungated", "i4i8", "w_down", np.uint8, "uint8"),
    ("ungated", "f32", "w_up", np.float64, "double"),
    ("ungated", "f16", "w_down", np.float32, "float"),
    ("ungated", "i4", "s_up", np.float32, "float"),
    ("ungated", "bf16", "b_down", np.float16, "float16"),
    ("linear", "f32", "w", np.float16, "float16"),
    ("linear", "bf16", "w", np.float32, "float"),
    ("linear", "i8", "w", np.uint8, "uint8"),
    ("linear", "i4", "s", np.float32, "float"),
]
ATTRIBUTES = [
    ("gated", {"activation": "gelu"}, "activation: expected relu, relu2, fatrelu, drelu or silu, got 'gelu'"),
    ("ungated", {"activation": "gelu"}, "activation: expected relu, relu2 or fatrelu, got 'gelu'"),
    ("ungated", {"activation": "silu"}, "activation: expected relu, relu2 or fatrelu, got 'silu'"),
    ("gated", {"threshold": -1.0}, "threshold: expected a finite number >= 0, got -1.000000"),
    ("ungated", {"threshold": float("inf")}, "threshold: expected a finite number >= 0, got inf"),
    ("ungated", {"threshold": float("nan")}, "threshold: expected a finite number >= 0, got nan"),
    ("gated", {"threshold": None}, "needs a float attribute 'threshold'"),
    ("ungated", {"threshold": None}, "needs a float attribute 'threshold'"),
    ("gated", {"activation": None}, "needs a string attribute 'activation' of up to 63 characters"),
    ("ungated", {"activation": None}, "needs a string attribute 'activation' of up to 63 characters"),
    (
        "ungated",
        {"activation": "r" * 64},
        "needs a string attribute 'activation' of up to 63 characters",
    ),
]


def model_of(
    kind: str, weights: formats.FfnFormat, inputs: Arrays, changed: dict[str, object] | None = None
) -> onnx.ModelProto:
    attributes = {"activation": "relu", "threshold": 0.0} | (changed or {}) if kind != "linear" else {}
    present = {name: value for name, value in attributes.items() if value is not None}
    model = weights_model(KINDS[kind](weights), inputs, 2, **present)
    for info in (model.graph.input[0], model.graph.output[0]):
        info.type.tensor_type.ClearField("shape")
    del model.functions[:]  # the body would reject some of these first, with other messages
    return model


def error_of(model: onnx.ModelProto) -> str:
    """All that the session says but for onnxruntime's own beginning."""
    with pytest.raises(Exception, match="ONNXRuntimeError") as caught:
        session(model, library=True)
    text = str(caught.value)
    begin = _PREFIX.match(text)
    assert begin is not None, text
    return text[begin.end() :]


@pytest.mark.parametrize(("kind", "weights", "spoil", "message"), WEIGHTS)
def test_shapes_and_scales(
    kind: str, weights: formats.FfnFormat, spoil: Callable[[Arrays], None], message: str
) -> None:
    inputs, _ = make(kind, weights, D_MODEL, D_FF, np.random.default_rng(0))
    session(model_of(kind, weights, inputs), library=True)  # so that one thing is wrong below
    spoil(inputs)
    assert error_of(model_of(kind, weights, inputs)) == f"{KINDS[kind](weights)} node 'ffn': {message}"


@pytest.mark.parametrize(("kind", "weights", "name", "dtype", "got"), TYPES)
def test_types(kind: str, weights: formats.FfnFormat, name: str, dtype: type, got: str) -> None:
    inputs, _ = make(kind, weights, D_MODEL, D_FF, np.random.default_rng(0))
    typed(name, dtype)(inputs)
    expected = _TYPE.format(got=got, what=name, op=KINDS[kind](weights))
    assert error_of(model_of(kind, weights, inputs)) == expected


@pytest.mark.parametrize(("kind", "changed", "message"), ATTRIBUTES)
def test_attributes(kind: str, changed: dict[str, object], message: str) -> None:
    for weights in formats.FFN_FORMATS:
        inputs, _ = make(kind, weights, D_MODEL, D_FF, np.random.default_rng(0))
        assert error_of(model_of(kind, weights, inputs, changed)) == f"{KINDS[kind](weights)} node 'ffn': {message}"


@pytest.mark.parametrize(("kind", "weights"), CASES)
def test_computed_weights(kind: str, weights: formats.FfnFormat) -> None:
    """Each matrix, scale and bias in turn is an input of the graph."""
    inputs, _ = make(kind, weights, D_MODEL, D_FF, np.random.default_rng(0))
    for name in inputs:
        model = model_of(kind, weights, inputs)
        computed = next(tensor for tensor in model.graph.initializer if tensor.name == name)
        model.graph.initializer.remove(computed)
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, computed.data_type, list(computed.dims)))
        assert (
            error_of(model)
            == f"{KINDS[kind](weights)} node 'ffn': {name}: expected an initializer, got a computed value"
        )
