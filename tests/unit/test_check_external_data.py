"""Weights of third-party files: present, complete, and in the folder of the .onnx file."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from prosparse_export.errors import ProSparseError
from prosparse_export.optimize.check_external_data import check_weights

HEAD = '<ir_version: 9, opset_import: ["" : 20]>'
W = np.arange(6, dtype=np.float32).reshape(2, 3)


def outside(location: str = "w.bin", offset: int = 0, length: int = W.nbytes) -> onnx.TensorProto:
    tensor = onnx.TensorProto(name="w", data_type=1, dims=W.shape, data_location=1)
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(tensor: onnx.TensorProto, folder: Path) -> ir.Model:
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[3] x) => (y) { y = MatMul (w, x) }'
    )
    proto.graph.initializer.append(tensor)
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return ir.load(folder / "m.onnx")


def read(folder: Path, model: ir.Model) -> np.ndarray:
    check_weights(folder / "m.onnx", model)
    tensor = model.graph.initializers["w"].const_value
    assert tensor is not None
    return tensor.numpy()


@pytest.mark.parametrize("location", ["w.bin", "sub/../w.bin", "./w.bin"])
def test_external_data(location: str, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "w.bin").write_bytes(b"1234" + W.tobytes())
    np.testing.assert_array_equal(read(tmp_path, model(outside(location, offset=4), tmp_path)), W)


def test_a_link_to_the_data(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0").write_bytes(W.tobytes())
    folder = tmp_path / "snapshot"
    folder.mkdir()
    os.symlink(tmp_path / "blobs" / "0", folder / "w.bin")
    np.testing.assert_array_equal(read(folder, model(outside(), folder)), W)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (outside("../w.bin"), "expected external data in the folder of the .onnx file, got '../w.bin'"),
        (outside("/w.bin"), "expected external data in the folder of the .onnx file, got '/w.bin'"),
        (outside("no.bin"), "external data FOLDER/no.bin: no such file"),
        (
            outside(length=20),
            "external data in FOLDER/w.bin: expected 24 bytes by its shape, at offset >= 0, got 20 at 0",
        ),
        (outside(offset=1), "expected 25 bytes in FOLDER/w.bin, got 24"),
    ],
)
def test_damaged_external_data(tensor: onnx.TensorProto, message: str, tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    damaged = model(tensor, tmp_path)
    with pytest.raises(ProSparseError) as caught:
        check_weights(tmp_path / "m.onnx", damaged)
    expected = f"model: {tmp_path / 'm.onnx'}: w: {message.replace('FOLDER', str(tmp_path))}"
    assert str(caught.value) == expected
    assert caught.value.hint


def damaged_inside(raw: bool) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(W, "w")
    if raw:
        tensor.raw_data = tensor.raw_data[:-4]
    else:
        tensor.ClearField("raw_data")
        tensor.float_data.extend([1.0, 2.0])
    return tensor


@pytest.mark.parametrize(
    ("raw", "message"),
    [(True, "expected 24 bytes for shape [2, 3], got 20"), (False, "expected 6 values for shape [2, 3], got 2")],
)
def test_damaged_data_in_the_file(raw: bool, message: str, tmp_path: Path) -> None:
    with pytest.raises(ProSparseError, match=r"m\.onnx: w: ") as caught:
        read(tmp_path, model(damaged_inside(raw), tmp_path))
    assert str(caught.value).endswith(message)


def test_constants_in_nodes_are_checked(tmp_path: Path) -> None:
    proto = onnx.parser.parse_model(f"{HEAD} g (float[3] x) => (y) {{ y = Neg (x) }}")
    proto.graph.node.append(onnx.helper.make_node("Constant", [], ["c"], name="k", value=damaged_inside(True)))
    with pytest.raises(ProSparseError, match=r"value of node 'k': expected 24 bytes for shape \[2, 3\], got 20"):
        check_weights(tmp_path / "m.onnx", ir.from_proto(proto))
