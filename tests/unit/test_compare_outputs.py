"""Two files on the same random inputs: the largest difference, or why there is none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from prosparse_export.errors import ProSparseError
from prosparse_export.optimize import compare_outputs
from prosparse_export.optimize.compare_outputs import largest_difference


def file(folder: Path, name: str, nodes: str, inputs: str = "float[n, 4] x", outputs: str = "float[n, m] y") -> Path:
    head = '<ir_version: 9, opset_import: ["" : 20]>'
    path = folder / name
    path.write_bytes(onnx.parser.parse_model(f"{head} g ({inputs}) => ({outputs}) {{ {nodes} }}").SerializeToString())
    return path


HALF = "h = Constant <value_float = 0.5> ()\n"


def test_the_largest_difference_and_the_largest_output(tmp_path: Path) -> None:
    one = file(tmp_path, "one.onnx", "y = Tanh (x)")
    assert largest_difference(one, one, library=False)[0] == 0.0
    other = file(tmp_path, "other.onnx", f"{HALF}t = Tanh (x)\ny = Add (t, h)")
    difference, size = largest_difference(one, other, library=False)
    assert difference == pytest.approx(0.5, abs=2.0**-23)  # a sum of at most 2 is rounded to 2^-23
    x = np.random.default_rng(0).standard_normal((1, 4)).astype(np.float32)
    assert size == pytest.approx(float(np.abs(np.tanh(x)).max()), rel=1e-6)


def test_a_nan_in_either_file_is_a_difference(tmp_path: Path) -> None:
    number = file(tmp_path, "one.onnx", "y = Neg (x)")
    nan = file(tmp_path, "two.onnx", "z = Sub (x, x)\ny = Div (z, z)")
    assert math.isnan(largest_difference(number, nan, library=False)[0])
    assert math.isnan(largest_difference(nan, number, library=False)[0])


def test_all_float_outputs_are_compared(tmp_path: Path) -> None:
    outputs = "float[n, 4] y, float[n, 4] z, int64[k] s"
    one = file(tmp_path, "one.onnx", "y = Neg (x)\nz = Neg (x)\ns = Shape (x)", outputs=outputs)
    other = file(tmp_path, "other.onnx", f"{HALF}y = Neg (x)\nz = Sub (y, h)\ns = Shape (x)", outputs=outputs)
    assert largest_difference(one, other, library=False)[0] > 0.4


def test_another_shape_is_an_infinite_difference(tmp_path: Path) -> None:
    one = file(tmp_path, "one.onnx", "y = Neg (x)")
    other = file(tmp_path, "other.onnx", "y = Concat <axis = 1> (x, x)")
    assert largest_difference(one, other, library=False)[0] == math.inf


def test_a_source_that_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "one.onnx").write_bytes(b"damaged")
    good = file(tmp_path, "good.onnx", "y = Neg (x)")
    reason = largest_difference(tmp_path / "one.onnx", good, library=False)
    assert isinstance(reason, str)
    assert reason.startswith("onnxruntime does not run the source on random inputs: ")
    assert "\n" not in reason
    with pytest.raises(ProSparseError, match=r"check: one\.onnx: onnxruntime runs the source, but not the optimized"):
        largest_difference(good, tmp_path / "one.onnx", library=False)


@pytest.mark.parametrize(
    ("name", "kind", "shape", "expected"),
    [
        ("input_ids", "int64", ["batch", "sequence"], (1, 4)),
        ("attention_mask", "int64", ["batch", "past + sequence"], (1, 4)),
        ("past_key_values.0.key", "float16", ["batch", 2, "past_length", "dim"], (1, 2, 0, 6)),
        ("x", "float", ["sequence", 3], (1, 3)),
        ("x", "double", [2, "k"], (2, 4)),
        ("use_cache_branch", "bool", [1], (1,)),
    ],
)
def test_inputs(name: str, kind: str, shape: list[object], expected: tuple[int, ...]) -> None:
    value = SimpleNamespace(name=name, type=f"tensor({kind})", shape=shape)
    array = compare_outputs._feeds(SimpleNamespace(get_inputs=lambda: [value]), head_size=6)[name]
    assert array.shape == expected
    assert array.dtype.name == {"float": "float32", "double": "float64"}.get(kind, kind)
    if name in ("attention_mask", "use_cache_branch"):
        assert (array == 1).all()
    if name == "input_ids":
        assert array.min() >= 1


def test_positions_count_up_and_the_head_size_is_read(tmp_path: Path) -> None:
    value = SimpleNamespace(name="position_ids", type="tensor(int64)", shape=["batch", "sequence"])
    feeds = compare_outputs._feeds(SimpleNamespace(get_inputs=lambda: [value]), head_size=6)
    assert feeds["position_ids"].tolist() == [[0, 1, 2, 3]]
    assert compare_outputs._head_size(tmp_path) == 4
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {"decoder": {"head_size": 6}}}))
    assert compare_outputs._head_size(tmp_path) == 6
