"""Which constants are a weight matrix, how it is read, and why others are not."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from graph_passes.formats import QUANT_GROUP
from graph_passes.weights.weight_source import Weight, is_parameter, nbits_weight, weight_behind

W = np.arange(12, dtype=np.float32).reshape(3, 4)
Q = np.asarray([[-128, -1, 0, 127], [1, 2, 3, 4], [5, 6, 7, 8]], np.int8)
CONSTANTS = {
    "w": W,
    "half": W.astype(np.float16),
    "double": W.astype(np.float64),
    "cube": np.ones((2, 3, 4), np.float32),
    "q": Q,
    "u": Q.view(np.uint8),
    "qcube": np.ones((2, 3, 4), np.int8),
    "s": np.float32(0.5),
    "s3": np.asarray([0.5, 2, 4], np.float32),
    "s4": np.asarray([0.5, 2, 4, 8], np.float32),
    "s32": np.asarray([[0.5, 2], [4, 8], [1, 3]], np.float32),
    "z4": np.asarray([1, 2, 3, 4], np.int8),
    "z3": np.asarray([1, 2, 3], np.int8),
    "zu": np.uint8(128),
}
TRANSPOSE = "t = Transpose (w)"
FLOATS = {
    "t = Identity (w)": (W, False, "FLOAT"),
    TRANSPOSE: (W, True, "FLOAT"),
    "a = Transpose <perm = [1, 0]> (w)\nb = Identity (a)\nt = Transpose (b)": (W, False, "FLOAT"),
    "t = Cast <to = 1> (half)": (W, False, "FLOAT"),
    "t = Identity (half)": (W, False, "FLOAT16"),
    "c = Cast <to = 1> (half)\nt = Transpose (c)": (W, True, "FLOAT"),
}
COLUMNS = np.asarray([[0.5, 2, 4, 8]])
ROWS = COLUMNS[:, :3].T
QDQ = {
    "t = DequantizeLinear (q, s)": Q * 0.5,
    "t = DequantizeLinear (q, s4)": Q * COLUMNS,
    "t = DequantizeLinear <axis = 0> (q, s3)": Q * np.asarray([[0.5], [2], [4]]),
    "t = DequantizeLinear <axis = -1> (q, s4, z4)": (Q - np.asarray([1.0, 2, 3, 4])) * COLUMNS,
    "t = DequantizeLinear (u, s, zu)": (Q.view(np.uint8) - 128.0) * 0.5,
    "t = DequantizeLinear <axis = 1, block_size = 2> (q, s32)": Q * np.repeat(CONSTANTS["s32"], 2, axis=1),
    "d = DequantizeLinear (q, s)\nt = Transpose (d)": Q * 0.5,
}
COMPUTED = "is computed at run time; expected an initializer"
REASONS = {
    "t = Relu (w)": COMPUTED,
    "t = Transpose <perm = [0, 1]> (w)": COMPUTED,
    "t = Cast <to = 1> (x)": COMPUTED,
    "t = Cast <to = 10> (w)": COMPUTED,
    "t = DequantizeLinear (q, x)": COMPUTED,
    "t = Cast <to = 1> (double)": "has type DOUBLE; expected FLOAT, FLOAT16 or BFLOAT16",
    "t = Identity (double)": "has type DOUBLE; expected FLOAT, FLOAT16 or BFLOAT16",
    "t = Identity (cube)": "has rank 3; expected 2",
    "t = DequantizeLinear (qcube, s)": "has rank 3; expected 2",
    "t = DequantizeLinear (q, s3)": "has scales of shape [3] (axis=1), which do not match its shape [3, 4]",
    "t = DequantizeLinear <axis = 1, block_size = 4> (q, s32)": (
        "has scales of shape [3, 2] (axis=1, block_size=4), which do not match its shape [3, 4]"
    ),
    "t = DequantizeLinear (q, s4, z3)": "has zero points of shape [3] (axis=1), which do not match its shape [3, 4]",
}


def graph_of(nodes: str, constants: dict[str, object], inputs: str = "float[1] x") -> ir.Graph:
    head = '<ir_version: 9, opset_import: ["" : 21, "com.microsoft" : 1]>'
    proto = onnx.parser.parse_model(f"{head} g ({inputs}) => (t) {{\n{nodes}\n}}")
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return ir.from_proto(proto).graph


def found(nodes: str) -> tuple[Weight, bool]:
    result = weight_behind(graph_of(nodes, CONSTANTS).outputs[0])
    assert not isinstance(result, str), result
    return result


@pytest.mark.parametrize("nodes", FLOATS)
def test_floats(nodes: str) -> None:
    weight, transposed = found(nodes)
    array, is_transposed, matmul_type = FLOATS[nodes]
    assert (transposed, weight.kind, weight.shape, weight.matmul_type.name) == (
        is_transposed,
        "float",
        array.shape,
        matmul_type,
    )
    np.testing.assert_array_equal(weight.read(), array)
    assert weight.read().dtype == weight.dtype.numpy()
    assert weight.packed is None


@pytest.mark.parametrize("nodes", QDQ)
def test_quantized(nodes: str) -> None:
    weight, transposed = found(nodes)
    assert (transposed, weight.kind, weight.shape) == ("Transpose" in nodes, "qdq", Q.shape)
    np.testing.assert_array_equal(weight.read(), QDQ[nodes])  # small integers times powers of two are exact
    assert (weight.read().dtype, weight.matmul_type) == (np.float32, ir.DataType.FLOAT)


@pytest.mark.parametrize("nodes", REASONS)
def test_reasons(nodes: str) -> None:
    assert weight_behind(graph_of(nodes, CONSTANTS).outputs[0]) == REASONS[nodes]


def test_an_initializer_that_callers_can_override() -> None:
    graph = graph_of("t = Identity (w)", CONSTANTS, inputs="float[3, 4] w")
    assert not is_parameter(graph.inputs[0])
    assert weight_behind(graph.outputs[0]) == (
        "is also a graph input, which callers may override; expected an initializer only"
    )
    assert weight_behind(None) == COMPUTED


NODE = "t = com.microsoft.MatMulNBits <N = {N}, K = {K}, bits = {bits}, block_size = {block_size}> (x, {inputs})"
GOOD = {"N": 2, "K": 64, "bits": 4, "block_size": 32, "inputs": "b, s"}


def nbits(**changes: object) -> Weight | str:
    rng = np.random.default_rng(0)
    constants: dict[str, object] = {
        "b": rng.integers(0, 256, (2, 2, 16), np.uint8),
        "s": np.asarray([0.5, 1, 2, -4], np.float32),
        "eights": np.full(2, 0x88, np.uint8),
        "nines": np.full(2, 0x99, np.uint8),
        "order": np.zeros(64, np.int32),
    }
    return nbits_weight(graph_of(NODE.format(**GOOD | changes), constants)[0])


@pytest.mark.parametrize("inputs", ["b, s", "b, s, eights"])
def test_matmulnbits(inputs: str) -> None:
    weight = nbits(inputs=inputs)
    assert not isinstance(weight, str)
    assert (weight.shape, weight.kind, weight.matmul_type.name) == ((2, 64), "nbits", "FLOAT")
    stored = np.random.default_rng(0).integers(0, 256, (2, 32), np.uint8)
    values = np.stack([stored % 16, stored // 16], -1).reshape(2, 64) - 8.0
    scales = np.asarray([[0.5, 1], [2, -4]])
    np.testing.assert_array_equal(weight.read(), values * np.repeat(scales, QUANT_GROUP, axis=1))
    assert weight.packed is not None
    packed, packed_scales = weight.packed()
    np.testing.assert_array_equal(packed, stored)
    np.testing.assert_array_equal(packed_scales, scales)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bits": 8}, "MatMulNBits has bits=8, block_size=32; expected bits=4, block_size=32"),
        ({"block_size": 64}, "MatMulNBits has bits=4, block_size=64; expected bits=4, block_size=32"),
        ({"K": 48}, "MatMulNBits has N=2, K=48; expected positive numbers, K a multiple of 32"),
        ({"N": 0}, "MatMulNBits has N=0, K=64; expected positive numbers, K a multiple of 32"),
        ({"N": 4}, "MatMulNBits has 64 bytes (UINT8); expected 128 for N=4, K=64"),
        ({"inputs": "b, b"}, "MatMulNBits has 64 scales (UINT8); expected 4 for N=2, K=64"),
        ({"inputs": "x, s"}, "MatMulNBits weights and scales must be initializers"),
        ({"inputs": "b, s, nines"}, "MatMulNBits has zero points other than 8; expected symmetric weights"),
        ({"inputs": "b, s, eights, order"}, "MatMulNBits uses g_idx, which is not supported"),
    ],
)
def test_matmulnbits_reasons(changes: dict[str, object], reason: str) -> None:
    assert nbits(**changes) == reason
