"""The output check of ``prosparse optimize``: its bound follows from rounding, and wrong files exceed it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from support.onnx_text import GATED, MS, model
from support.third_party_quantized import nbits, nbits_arrays

from graph_passes import FfnFormat
from prosparse_export import OptimizeOptions, ProSparseError, optimize_file
from prosparse_export.optimize import OptimizeResult
from prosparse_export.optimize.check_outputs import check_outputs, output_bound
from prosparse_export.optimize.matmulnbits_float import with_float_activations

LEVEL_4 = nbits().replace("block_size = 32", "block_size = 32, accuracy_level = 4")
I8, I4 = 2.3 / 127 / 12**0.5, 2.3 / 8 / 12**0.5
NL4 = 0.9 * I4
# Source, format, bound relative to the largest output: 4 times the root of the MatMuls' summed squared errors.
CASES: dict[str, tuple[str, FfnFormat, float]] = {
    "float, f32": (GATED, "f32", 1e-4),
    "float, f16": (GATED, "f16", 1e-4 + 4 * 3**0.5 * 2.0**-11),
    "float, i8": (GATED, "i8", 1e-4 + 4 * 3**0.5 * I8),
    "float, i4": (GATED, "i4", 1e-4 + 4 * 3**0.5 * I4),
    "float, nl4": (GATED, "nl4", 1e-4 + 4 * 3**0.5 * NL4),
    "float, i4i8": (GATED, "i4i8", 1e-4 + 4 * (2 * I4**2 + I8**2) ** 0.5),
    "MatMulNBits, f32": (LEVEL_4, "f32", 1e-4),
    "MatMulNBits, i8": (LEVEL_4, "i8", 1e-4 + 4 * (2 * 2.0**-22 + I8**2) ** 0.5),
    "MatMulNBits, i4i8": (LEVEL_4, "i4i8", 1e-4 + 4 * (2 * 2.0**-22 + I8**2) ** 0.5),
    "MatMulNBits, nl4i8": (LEVEL_4, "nl4i8", 1e-4 + 4 * (2 * NL4**2 + I8**2) ** 0.5),
    "MatMulNBits, i4": (LEVEL_4, "i4", 1e-4 + 4 * (2 * 2.0**-22 + I4**2) ** 0.5),
}


def optimized(name: str, folder: Path, *, outside: bool = False) -> tuple[Path, OptimizeResult]:
    nodes, weights, _ = CASES[name]
    proto = model(nodes, nbits_arrays(), imports=MS) if nodes is LEVEL_4 else model(nodes, opset=20)
    folder.mkdir()
    path = folder / "in.onnx"
    onnx.save(proto, path, save_as_external_data=outside, size_threshold=0, location="in.data")
    return path, optimize_file(path, folder / "out" / "m.onnx", OptimizeOptions(weights=weights))


@pytest.mark.parametrize("name", CASES)
def test_correct_files_are_within_the_bound_and_wrong_files_are_not(name: str, tmp_path: Path) -> None:
    source, result = optimized(name, tmp_path / "m")
    check = result.manifest.output_check
    difference = check.float_activations_difference
    if difference is None:
        difference = check.largest_difference
    assert difference <= check.bound == pytest.approx(CASES[name][2] * max(1.0, check.largest_output), rel=0.1)

    proto = onnx.load(result.path)
    node = next(n for n in proto.graph.node if n.domain == "com.prosparse")
    inputs = list(node.input)
    gate, up = ([i for i, one in enumerate(inputs) if part in one] for part in ("gate_proj", "up_proj"))
    for one, other in zip(gate, up, strict=True):  # integer formats have scales too
        node.input[one], node.input[other] = inputs[other], inputs[one]
    onnx.save(proto, result.path.parent / "wrong.onnx")
    with pytest.raises(ProSparseError, match="outputs differ from the source's: expected at most") as caught:
        check_outputs(
            source, result.path.parent / "wrong.onnx", result.rewritten, CASES[name][1], halves=False, library=True
        )
    assert caught.value.hint
    assert not list(result.path.parent.glob(".check-*"))


def test_rounded_activations_do_not_widen_the_bound(tmp_path: Path) -> None:
    _, result = optimized("MatMulNBits, f32", tmp_path / "m", outside=True)
    check = result.manifest.output_check
    assert check.largest_difference > 10 * check.bound  # accuracy level 4, in the source only
    assert check.float_activations_difference <= check.bound / 10


def test_the_copy_float_activations_is_gone_and_changes_nothing(tmp_path: Path) -> None:
    source, _ = optimized("MatMulNBits, f32", tmp_path / "m", outside=True)
    before = source.read_bytes()
    with with_float_activations(source, tmp_path) as copy:
        changed = onnx.load(copy, load_external_data=False)
        assert (copy.parent / "in.data").read_bytes() == (source.parent / "in.data").read_bytes()
    assert not copy.parent.exists()
    assert source.read_bytes() == before
    original = onnx.load(source, load_external_data=False)
    levels = [a for n in original.graph.node for a in n.attribute if a.name == "accuracy_level" and a.i == 4]
    assert len(levels) == 3
    for attribute in levels:
        attribute.i = 0
    assert changed == original


def test_a_corrupt_rewrite_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from graph_passes.weights import store_weight

    real = store_weight.stored_tensors
    monkeypatch.setattr(
        store_weight, "stored_tensors", lambda read, *rest: real(lambda: read() * np.float32(1.01), *rest)
    )
    with pytest.raises(ProSparseError, match=re.escape("outputs differ from the source's")):
        optimized("MatMulNBits, f32", tmp_path / "m")
    assert not (tmp_path / "m" / "out").exists()


def test_the_bound_stays_finite(tmp_path: Path) -> None:
    _, result = optimized("float, i4", tmp_path / "m")
    (ffn,) = result.rewritten
    assert output_bound([ffn] * 1000, "i4", halves=False) == 2.0
    assert output_bound([ffn] * 1000, None, halves=False) == 1e-4
    assert output_bound([replace(ffn, activation="relu2")], "i8", halves=True) > output_bound([ffn], "i8", halves=True)
    crossings = output_bound([replace(ffn, activation="fatrelu", threshold=0.1)], "i4", halves=False)
    assert output_bound([ffn], "i4", halves=False) < crossings < 2.0
