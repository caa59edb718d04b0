"""User errors, ONNX files: damaged or incomplete ones give one line and a hint, and nothing is written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx import ModelProto
from support.onnx_text import GATED, MS, ROWS, UNGATED, Arrays, model, weights
from support.third_party_layers import FUNCTION
from support.third_party_quantized import QDQ, nbits, nbits_arrays, qdq_arrays

from prosparse_export import ProSparseError, optimize_file
from prosparse_export.artifact.writer import write_artifact
from prosparse_export.cli import main

pytestmark = pytest.mark.integration


def cyclic() -> bytes:
    proto = model(UNGATED.format("Relu (z)"))
    proto.graph.node[0].input[0] = "y"
    return bytes(proto.SerializeToString())


def dangling() -> bytes:
    proto = model(UNGATED.format("Relu (z)"))
    del proto.graph.initializer[:]
    return bytes(proto.SerializeToString())


def of_opset(number: int) -> bytes:
    proto = model(UNGATED.format("Relu (z)"))
    proto.opset_import[0].version = number
    return bytes(proto.SerializeToString())


def external(length: int, location: str = "weights.bin", offset: object = 0) -> bytes:
    proto = model(UNGATED.format("Relu (z)"))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))
    return bytes(proto.SerializeToString())


def changed(nodes: str, change: Callable[[ModelProto], object], arrays: Arrays | None = None, **options: str) -> bytes:
    proto = model(nodes, arrays, **options)
    change(proto)
    return bytes(proto.SerializeToString())


def without_input(kind: str, nodes: str, **options: str) -> bytes:
    """The model of ``nodes`` whose first node of ``kind`` lacks its last required input."""

    def drop(proto: ModelProto) -> None:
        node = next(node for node in proto.graph.node if node.op_type == kind)
        del node.input[-2 if kind == "Gemm" else -1 :]  # its bias may be missing

    return changed(nodes, drop, **options)


def in_domain(domain: str, opset: int) -> bytes:
    def rename(proto: ModelProto) -> None:
        proto.opset_import[0].domain, proto.opset_import[0].version = domain, opset

    return changed(UNGATED.format("Relu (z)"), rename)


WHERE = "z = MatMul (x, w_up)\nc = Less (z, zero)\nh = Where (c, zero, z)\ny = MatMul (h, w_down)"
POW = "z = MatMul (x, w_up)\nr = Relu (z)\nh = Pow (r, two)\ny = MatMul (h, w_down)"
CALL = "z = MatMul (x, w_up)\nh = pkg.Act (z)\ny = MatMul (h, w_down)"
ENDLESS = '<domain: "pkg", opset_import: ["" : 18, "pkg" : 1]> Act (z) => (h) { h = pkg.Act (z) }'
OTHER_OPSET = '<domain: "pkg", opset_import: ["" : 13]> Act (z) => (h) { h = Relu (z) }'


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (lambda: b"this is no protobuf" * 9, "not a valid ONNX file (171 bytes)"),
    "empty": (lambda: b"", "got an empty graph"),
    "truncated": (lambda: model(GATED).SerializeToString()[:-1000], "not a valid ONNX file ("),
    "cycle": (cyclic, "the graph has a cycle"),
    "value without a producer": (dangling, "no node produces its input 'w_up'"),
    "newer opset": (lambda: of_opset(99), "opset: expected 1 to"),
    "external data missing": (lambda: external(8192), "external data "),
    "MatMul with one input": (
        lambda: without_input("MatMul", GATED),
        "MatMul: expected 2 inputs and at least 1 outputs, got 1 and 1",
    ),
    "Relu without input": (
        lambda: without_input("Relu", GATED),
        "Relu: expected 1 inputs and at least 1 outputs, got 0 and 1",
    ),
    "Relu with an unnamed input": (
        lambda: changed(GATED, lambda p: p.graph.node[2].input.__setitem__(0, "")),
        "Relu: required input X is missing",
    ),
    "Gemm with one input": (
        lambda: without_input("Gemm", "z = Gemm (x, w_up, b_up)\nh = Relu (z)\ny = Gemm (h, w_down, b_down)", **ROWS),
        "Gemm: expected 2 to 3 inputs and at least 1 outputs, got 1 and 1",
    ),
    "Less with one input": (
        lambda: without_input("Less", WHERE),
        "Less: expected 2 inputs and at least 1 outputs, got 1",
    ),
    "Where with two inputs": (
        lambda: without_input("Where", WHERE),
        "Where: expected 3 inputs and at least 1 outputs, got 2",
    ),
    "Pow with one input": (lambda: without_input("Pow", POW), "Pow: expected 2 inputs and at least 1 outputs, got 1"),
    "Mul with one input": (lambda: without_input("Mul", GATED), "Mul: expected 2 inputs and at least 1 outputs, got 1"),
    "Relu without input in a function": (
        lambda: changed(
            CALL, lambda p: p.functions[0].node[0].ClearField("input"), functions=FUNCTION, imports=', "pkg" : 1'
        ),
        "Relu: expected 1 inputs and at least 1 outputs, got 0",
    ),
    "recursive function": (
        lambda: changed(CALL, lambda _: None, functions=ENDLESS, imports=', "pkg" : 1'),
        "Cyclic dependency detected between functions: pkg::Act -> pkg::Act",
    ),
    "function with another opset": (
        lambda: changed(CALL, lambda _: None, functions=OTHER_OPSET, imports=', "pkg" : 1'),
        "Opset mismatch when inlining function 'pkg::Act'",
    ),
    "output with two producers": (
        lambda: changed(GATED, lambda p: p.graph.node[1].output.__setitem__(0, "z")),
        'Original declaration %"z"',
    ),
    "output without a producer": (
        lambda: changed(GATED, lambda p: setattr(p.graph.output[0], "name", "nowhere")),
        "no node produces the graph output 'nowhere'",
    ),
    "unknown data type": (
        lambda: changed(GATED, lambda p: setattr(p.graph.initializer[0], "data_type", 99)),
        "99 is not a valid DataType",
    ),
    "raw data shorter than the shape": (
        lambda: changed(GATED, lambda p: p.graph.initializer[0].dims.__setitem__(0, 1000)),
        "w_gate: expected 256000 bytes for shape [1000, 64], got 8192",
    ),
    "no data": (
        lambda: changed(GATED, lambda p: p.graph.initializer[0].ClearField("raw_data")),
        "w_gate: expected 2048 values for shape [32, 64], got 0",
    ),
    "float data shorter than the shape": (
        lambda: changed(
            GATED,
            lambda p: p.graph.initializer[0].ClearField("raw_data") or p.graph.initializer[0].float_data.append(1.0),
        ),
        "w_gate: expected 2048 values for shape [32, 64], got 1",
    ),
    "offset that is not a number": (lambda: external(8192, offset="abc"), "invalid literal for int"),
    "negative offset": (lambda: external(8192, offset=-5), "External data offset must be non-negative"),
    "external data shorter than the shape": (
        lambda: external(100, "in.onnx"),
        "expected 8192 bytes by its shape, at offset >= 0, got 100 at 0",
    ),
    "external data outside the folder": (
        lambda: external(8192, "../secret.bin"),
        "external data in the folder of the .onnx file, got '../secret.bin'",
    ),
    "external data outside the folder, hidden": (
        lambda: external(8192, "a/../../secret.bin"),
        "external data in the folder of the .onnx file, got '../secret.bin'",
    ),
    "external data at an absolute path": (
        lambda: external(8192, "/secret.bin"),
        "external data in the folder of the .onnx file, got '/secret.bin'",
    ),
    "MatMulNBits with another shape": (
        lambda: changed(
            nbits(), lambda _: None, {**nbits_arrays(), "q_up": np.zeros((3, 1, 16), np.uint8)}, imports=MS
        ),
        "MatMulNBits has 48 bytes (UINT8); expected 1024 for N=64, K=32",
    ),
    "MatMulNBits without input": (
        lambda: changed(nbits(), lambda p: p.graph.node[0].ClearField("input"), nbits_arrays(), imports=MS),
        "MatMulNBits weights and scales must be initializers",
    ),
    "DequantizeLinear with another shape": (
        lambda: changed(QDQ, lambda _: None, {**qdq_arrays(), "s_w_up": np.ones(5, np.float32)}),
        "has scales of shape [5] (axis=1), which do not match its shape [32, 64]",
    ),
    "opset 0": (lambda: of_opset(0), ", got 0"),
    "negative opset": (lambda: of_opset(-3), ", got -3"),
    "no opset": (lambda: in_domain("pkg", 18), "the file declares no opset"),
    "nothing to do": (lambda: model("y = Relu (x)").SerializeToString(), "no FFN was found"),
    "opset 11": (lambda: of_opset(11), "opset 11 is too old; expected 13 or newer"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_error_is_one_line(name: str, tmp_path: Path) -> None:
    build, message = BAD[name]
    (tmp_path / "in").mkdir()
    source = tmp_path / "in" / "in.onnx"
    source.write_bytes(build())
    (tmp_path / "secret.bin").write_bytes(bytes(8192))  # where it is read, nothing else is wrong
    result = CliRunner().invoke(main, ["optimize", "-q", "--weights", "f32", str(source), str(tmp_path / "out/m.onnx")])
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    error, hint = result.stderr.splitlines()
    assert error.startswith(f"error: model: {source}: ")
    assert message in error
    assert hint.startswith("hint: ")
    assert ("upgrade onnx" in hint) == (name == "newer opset")
    assert not (tmp_path / "out").exists()


def test_the_error_is_one_line_in_a_terminal_too(tmp_path: Path) -> None:
    """In a separate process, where pytest does not capture onnx_ir's log lines."""
    (tmp_path / "in.onnx").write_bytes(BAD["output without a producer"][0]())
    command = [sys.executable, "-m", "prosparse_export", "optimize", "-q", "in.onnx", "out/m.onnx"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    assert child.returncode == 1
    assert child.stderr.splitlines() == [
        "error: model: in.onnx: no node produces the graph output 'nowhere'",
        "hint: copy or export the file again",
    ]


def test_domain_ai_onnx_is_the_default_domain(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(in_domain("ai.onnx", 18))
    result = optimize_file(tmp_path / "in.onnx", tmp_path / "out" / "m.onnx")
    assert len(result.rewritten) == 1
    assert {i.domain: i.version for i in onnx.load(result.path).opset_import} == {"": 18, "com.prosparse": 1}
    assert result.manifest.output_check.outputs_compared


def test_symbolic_links_of_the_hugging_face_cache(tmp_path: Path) -> None:
    """The cache links the .onnx and its data to files of other names in another folder."""
    snapshot = tmp_path / "snapshots" / "revision"
    for folder in (tmp_path / "blobs", snapshot):
        folder.mkdir(parents=True)
    (tmp_path / "blobs" / "one").write_bytes(external(8192, "in.onnx_data"))
    (tmp_path / "blobs" / "two").write_bytes(weights()["w_up"].tobytes())
    (snapshot / "in.onnx").symlink_to("../../blobs/one")
    (snapshot / "in.onnx_data").symlink_to("../../blobs/two")
    result = optimize_file(snapshot / "in.onnx", tmp_path / "out" / "m.onnx")
    assert result.manifest.output_check.outputs_compared, result.manifest.output_check
    assert result.manifest.output_check.largest_difference < 1e-5
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(result.path).graph.initializer}
    w_up = next(node for node in onnx.load(result.path).graph.node if node.domain == "com.prosparse").input[1]
    np.testing.assert_array_equal(stored[w_up], weights()["w_up"].T)


def test_a_result_that_does_not_run_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prosparse_export.optimize import optimize

    def cut(model: ir.Model, staging: Path, name: str, *rest: object) -> None:
        write_artifact(model, staging, name, *rest)  # type: ignore[arg-type]
        (staging / name).write_bytes((staging / name).read_bytes()[:-20])

    monkeypatch.setattr(optimize, "write_artifact", cut)
    (tmp_path / "in.onnx").write_bytes(model(GATED).SerializeToString())
    with pytest.raises(ProSparseError, match="onnxruntime runs the source, but not the optimized file") as caught:
        optimize_file(tmp_path / "in.onnx", tmp_path / "out" / "m.onnx")
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


def test_truncated_external_data(tmp_path: Path) -> None:
    (tmp_path / "in.onnx").write_bytes(external(8192))
    (tmp_path / "weights.bin").write_bytes(b"0" * 4000)
    with pytest.raises(ProSparseError, match=r"expected 8192 bytes in .*weights.bin, got 4000"):
        optimize_file(tmp_path / "in.onnx", tmp_path / "out" / "m.onnx")
