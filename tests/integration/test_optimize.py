"""``prosparse optimize`` on files of other exporters: outputs, memory, messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto
from support.onnx_text import D_FF, D_MODEL, GATED, model, named
from support.third_party_graphs import GRAPHS
from support.third_party_layers import in_old_ir

from graph_passes import dequantize
from graph_passes.weights.quantization import unpack
from prosparse_export import OptimizeOptions, ProSparseError, optimize_file, register

pytestmark = pytest.mark.integration


def save(folder: Path, proto: ModelProto) -> Path:
    folder.mkdir(exist_ok=True)
    onnx.save(named(proto), folder / "in.onnx")
    return folder / "in.onnx"


def run(path: Path, *, library: bool, seed: int = 0, as_written: bool = False) -> NDArray[np.generic]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if library:
        register(options)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feeds: dict[str, NDArray[np.generic]] = {}
    rng = np.random.default_rng(seed)
    for value in session.get_inputs():
        shape = [dim if isinstance(dim, int) else 3 + i for i, dim in enumerate(value.shape)]
        kinds = {"tensor(float16)": np.float16, "tensor(float)": np.float32, "tensor(double)": np.float64}
        feeds[value.name] = (
            np.array([True]) if value.type == "tensor(bool)" else rng.standard_normal(shape).astype(kinds[value.type])
        )
        if value.type == "tensor(bool)" and not value.shape:
            feeds[value.name] = np.array(True)
    result: NDArray[np.generic] = session.run(None, feeds)[0]
    return result


# One graph for each step of the command; tests/unit/test_pipeline.py has all of them.
END_TO_END = {
    name: GRAPHS[name][:2]
    for name in (
        "opset 14",
        "everything in float16",
        "weights as Constant nodes",
        "weights shared by two FFNs",
        "a local function",
        "Gemm between two Reshapes",
        "three MatMuls of one width",
        "in the body of If",
        "quantize_static, QDQ",
        "model builder, int4",
    )
}
END_TO_END["initializers as inputs, IR 3"] = (in_old_ir, 1)


@pytest.mark.parametrize("name", END_TO_END)
def test_outputs_stay(name: str, tmp_path: Path) -> None:
    build, rewritten = END_TO_END[name]
    source = save(tmp_path / "in", build())
    before = source.read_bytes()
    result = optimize_file(source, tmp_path / "out" / "m.onnx", OptimizeOptions(allow_dense=True))
    assert len(result.rewritten) == rewritten
    assert source.read_bytes() == before
    expected = run(source, library=False)
    # Sums of d_model, then d_ff terms, in another order; float16 also rounds h and y.
    half = expected.dtype == np.float16
    bound = (2 * (D_MODEL + D_FF) * 2.0**-24 + 4 * half * 2.0**-11) * max(1.0, float(np.abs(expected).max()))
    for library in (True, False):
        actual = run(result.path, library=library)
        assert actual.dtype == expected.dtype
        assert np.abs(actual.astype(np.float64) - expected).max() <= bound


@pytest.mark.parametrize(("name", "stored"), [("QDQ weights", "f32"), ("model builder, int4", "f32")])
def test_integer_weights_keep_their_values_on_request(name: str, stored: str, tmp_path: Path) -> None:
    source = save(tmp_path / "in", GRAPHS[name][0]())
    result = optimize_file(source, tmp_path / "out" / "m.onnx", OptimizeOptions(weights="f32"))
    assert [o.op for o in result.rewritten] == [f"Sparse{'Gated' * ('int4' in name)}FFN{stored.upper()}"]
    expected = run(source, library=False, as_written=True)  # onnxruntime's fusions round activations
    for library in (True, False):
        difference = np.abs(run(result.path, library=library) - expected).max()
        assert difference <= 2 * (D_MODEL + D_FF) * 2.0**-24 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize("stored", ["i8", "i4i8"])
def test_4_bit_values_stay(stored: str, tmp_path: Path) -> None:
    """gate_proj and up_proj keep their values and round their scales to float16; down_proj becomes i8."""
    source = save(tmp_path / "in", GRAPHS["model builder, int4"][0]())
    result = optimize_file(source, tmp_path / "out" / "m.onnx", OptimizeOptions(weights=stored))  # type: ignore[arg-type]
    assert [o.op for o in result.rewritten] == [f"SparseGatedFFN{stored.upper()}"]
    proto = onnx.load(result.path)
    arrays = {i.name: onnx.numpy_helper.to_array(i) for i in proto.graph.initializer}
    names = next(node for node in proto.graph.node if node.domain == "com.prosparse").input
    packed = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(source).graph.initializer}
    for integers, scales, suffix in ((names[1], names[2], "gate"), (names[4], names[5], "up")):
        old = packed[f"q_{suffix}"].reshape(D_FF, -1)
        expected = old if stored == "i4i8" else unpack(old, "i4")
        assert arrays[integers].dtype == expected.dtype
        np.testing.assert_array_equal(arrays[integers], expected)
        np.testing.assert_array_equal(arrays[scales].reshape(-1), packed[f"s_{suffix}"].reshape(-1).astype(np.float16))
    nibbles = packed["q_down"].reshape(D_MODEL, -1)
    down = (np.stack([nibbles & 15, nibbles >> 4], -1).reshape(D_MODEL, -1, 32).astype(np.float32) - 8).transpose(
        1, 2, 0
    )
    down = (down * packed["s_down"].reshape(D_MODEL, -1).T[:, None]).reshape(D_FF, -1, 32)
    largest = np.abs(down).max(-1, keepdims=True)
    assert arrays[names[7]].dtype == np.int8
    rounded = dequantize(arrays[names[7]], arrays[names[8]], D_MODEL, "i8").reshape(down.shape)
    assert (np.abs(rounded - down) <= largest / 254 * (1 + 2.0**-10)).all()  # and the scale is a float16
    check = result.manifest.output_check
    assert check.outputs_compared
    assert 0.0 < check.largest_difference < 0.03 * check.largest_output  # recorded: rounding on request


def test_a_second_run_changes_nothing(tmp_path: Path) -> None:
    source = save(tmp_path / "in", model(GATED))
    first = optimize_file(source, tmp_path / "one" / "m.onnx")
    second = optimize_file(first.path, tmp_path / "two" / "m.onnx")
    assert (len(second.rewritten), len(second.not_rewritten), second.already) == (0, 0, 1)
    one, two = (onnx.load(path) for path in (first.path, second.path))
    assert [n.op_type for n in one.graph.node] == [n.op_type for n in two.graph.node] == ["SparseGatedFFNF32"]
    assert [f.name for f in two.functions] == ["SparseGatedFFNF32"]
    for library in (True, False):
        np.testing.assert_array_equal(run(first.path, library=library), run(second.path, library=library))


def test_weights_outside_of_the_file_are_not_read_all_at_once(tmp_path: Path) -> None:
    """24 FFNs with 16 MiB matrices; at no time are more than a few of them in memory that is ours alone."""
    rng = np.random.default_rng(0)
    d_model, d_ff, ffns = 1024, 4096, 24
    arrays = {"up": (rng.standard_normal((d_model, d_ff)) / 32).astype(np.float32)}
    arrays["down"] = np.ascontiguousarray(arrays["up"].T)
    nodes, initializers, x = [], [], "x0"
    for i in range(ffns):
        nodes += [f"z{i} = MatMul ({x}, up{i})", f"h{i} = Relu (z{i})", f"x{i + 1} = MatMul (h{i}, down{i})"]
        x = f"x{i + 1}"
    text = "\n".join(nodes)
    signature = f"(float[n, {d_model}] x0) => (float[n, {d_model}] {x})"
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]> g {signature} {{\n{text}\n}}')
    folder = tmp_path / "in"
    folder.mkdir()
    offset = 0
    with (folder / "weights.bin").open("wb") as stream:
        for i in range(ffns):
            for name, array in arrays.items():
                tensor = onnx.TensorProto(name=f"{name}{i}", data_type=1, dims=array.shape, data_location=1)
                for key, value in (("location", "weights.bin"), ("offset", offset), ("length", array.nbytes)):
                    tensor.external_data.add(key=key, value=str(value))
                initializers.append(tensor)
                stream.write(array.tobytes())
                offset += array.nbytes
    proto.graph.initializer.extend(initializers)
    (folder / "in.onnx").write_bytes(proto.SerializeToString())
    # The child reports the most anonymous memory that it had beyond its start; mapped files are not counted.
    program = """
import pathlib, re, sys, threading, time
from prosparse_export import OptimizeOptions, optimize_file
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])
start, most, done = anonymous(), 0, False
def watch():
    global most
    while not done:
        most = max(most, anonymous() - start)
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
options = OptimizeOptions(check=False)  # onnxruntime's own memory is not the question
result = optimize_file(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), options)
done = True
thread.join()
print(len(result.rewritten), most // 1024)
"""
    command = [sys.executable, "-c", program, str(folder / "in.onnx"), str(tmp_path / "out" / "m.onnx")]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    rewritten, megabytes = map(int, child.stdout.split())
    assert rewritten == ffns
    assert offset == 768 << 20
    assert megabytes < 160  # ten matrices' worth; all of them are 768


def test_command_lists_what_it_did_not_rewrite(tmp_path: Path) -> None:
    source = save(tmp_path / "in", GRAPHS["three MatMuls of one width"][0]())
    command = [sys.executable, "-c", "from prosparse_export.cli import main; main()", "optimize", "-q", "-v", "--json"]
    child = subprocess.run(
        [*command, str(source), str(tmp_path / "out" / "m.onnx")], capture_output=True, text=True, check=False
    )
    assert child.returncode == 0, child.stderr
    lines = child.stderr.splitlines()
    assert lines[0] == "/mlp/MatMul_c: SparseFFNF32 (relu)"
    assert lines[1].startswith("/mlp/MatMul_y: its up_proj is the down_proj of another FFN")
    manifest = json.loads(child.stdout)
    assert manifest == json.loads((tmp_path / "out" / "prosparse.json").read_text())
    assert manifest["output_check"]["outputs_compared"]


def test_wrong_numbers_are_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graph_passes.weights import store_weight

    real = store_weight.stored_tensors
    monkeypatch.setattr(
        store_weight, "stored_tensors", lambda read, *rest: real(lambda: read() * np.float32(1.01), *rest)
    )
    source = save(tmp_path / "in", model(GATED))
    with pytest.raises(ProSparseError, match="outputs differ from the source's"):
        optimize_file(source, tmp_path / "out" / "m.onnx")
    assert not (tmp_path / "out").exists()


def test_decomposed_files_need_no_library(tmp_path: Path) -> None:
    source = save(tmp_path / "in", model(GATED, opset=20))
    decomposed = optimize_file(source, tmp_path / "one" / "m.onnx", OptimizeOptions(weights="i4i8", decomposed=True))
    usual = optimize_file(source, tmp_path / "two" / "m.onnx", OptimizeOptions(weights="i4i8"))
    onnx.checker.check_model(str(decomposed.path), full_check=True)
    assert {node.domain for node in onnx.load(decomposed.path).graph.node} == {""}
    np.testing.assert_array_equal(run(decomposed.path, library=False), run(usual.path, library=False))
