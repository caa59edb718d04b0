"""The table of weight formats, and that a new row is enough for a new format."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from support.graphs import evaluate, graph_of, ops

from graph_passes import FFN_FORMATS, FORMAT_SPECS, FORMATS, FuseLinearPass, custom_ops, float_format, format_of
from graph_passes.formats import FormatSpec
from graph_passes.weights.quantization import rounded
from prosparse_export.analysis.roofline import bits_per_weight
from prosparse_export.cli.format_choice import FormatChoice


def test_every_matrix_of_every_ffn_has_a_row() -> None:
    for weights in FFN_FORMATS:
        assert {format_of(weights, is_down=is_down) for is_down in (False, True)} <= set(FORMAT_SPECS)
    assert (format_of("i4i8", is_down=False), format_of("i4i8", is_down=True)) == ("i4", "i8")


def test_sizes() -> None:
    assert {name: spec.bits_per_weight for name, spec in FORMAT_SPECS.items()} == {
        "f32": 32,
        "f16": 16,
        "bf16": 16,
        "i8": 8.5,
        "i4": 4.5,
        "nl4": 4.5,
    }
    i8, i4, f16 = (FORMAT_SPECS[name] for name in ("i8", "i4", "f16"))
    assert [spec.stored_columns(33) for spec in (f16, i8, i4)] == [33, 33, 32]  # two groups of 16 bytes
    assert [spec.groups(33) for spec in (f16, i8, i4)] == [0, 2, 2]
    assert [spec.columns(32) for spec in (f16, i8, i4)] == [32, 32, 64]


def test_float_formats_by_type() -> None:
    assert [float_format(name) for name in ("float32", "float16", "bfloat16", "float64")] == [
        "f32",
        "f16",
        "bf16",
        None,
    ]
    assert float_format(ir.DataType.BFLOAT16) == "bf16"
    assert float_format(ir.DataType.INT8) is None


def test_options_offer_the_table() -> None:
    assert FormatChoice("source", ffn=True).choices == ("source", *FFN_FORMATS)
    assert FormatChoice("same", ffn=False).choices == ("same", *FORMATS)


def test_a_new_format_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    name: Any = "f8"
    monkeypatch.setitem(FORMAT_SPECS, name, FormatSpec(name, "FLOAT8E4M3FN", 8, 2.0**-4))  # type: ignore[arg-type]
    monkeypatch.setattr(custom_ops, "FORMATS", (*FORMATS, name))
    monkeypatch.setattr(custom_ops, "FFN_FORMATS", (*FFN_FORMATS, name))
    weight = np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)
    model = graph_of("y = MatMul (x, w)", "float[n, 32] x", "float[n, 8] y", w=weight)
    assert FuseLinearPass(name)(model).modified
    assert ops(model) == ["LinearF8"]
    x = np.eye(32, dtype=np.float32)
    np.testing.assert_array_equal(evaluate(model, x=x)[0], rounded(weight, name))
    assert bits_per_weight(name) == 8
