"""The roofline model, against bytes counted by hand."""

from __future__ import annotations

import pytest

from prosparse_export.analysis.roofline import Ffn, bits_per_weight, predict


def test_llama_2_7b_in_i4() -> None:
    """Known figures: an FFN reads 76 MB dense and 31 MB at 89%, has 65.5% of the weights, and gains at most 1.64x."""
    ffn = Ffn(4096, 11008, gated=True, weights="i4", skipped=0.89)
    assert ffn.dense_bytes == 3 * 4096 * 11008 * 18 / 32
    assert ffn.sparse_bytes == pytest.approx(ffn.dense_bytes * 1.22 / 3)
    others = (32 * 4 * 4096 * 4096 + 32000 * 4096) * 18 / 32
    cost = predict([ffn] * 32, others, 25e9)
    assert cost.ffn_share == pytest.approx(0.655, abs=5e-4)
    assert cost.speedup == pytest.approx(1.64, abs=5e-3)
    assert cost.dense_seconds == pytest.approx((32 * ffn.dense_bytes + others) / 25e9)


def test_mixed_formats() -> None:
    weights = 64 * 256
    gated, ungated = (Ffn(64, 256, gated=gated, weights="i4i8", skipped=0.75) for gated in (True, False))
    assert (gated.dense_bytes, gated.sparse_bytes) == (weights * 17.5 / 8, weights * (4.5 + 13 / 4) / 8)
    assert (ungated.dense_bytes, ungated.sparse_bytes) == (weights * 13 / 8, weights * (4.5 + 8.5 / 4) / 8)


def test_without_a_gate_and_without_sparsity() -> None:
    ffn = Ffn(64, 256, gated=False, weights="f32", skipped=0.75)
    assert (ffn.dense_bytes, ffn.sparse_bytes) == (2 * 64 * 256 * 4, 1.25 * 64 * 256 * 4)
    assert Ffn(64, 256, gated=True, weights="bf16", skipped=0.0).speedup == 1.0


def test_overhead_counts_in_both() -> None:
    ffn = Ffn(64, 256, gated=True, weights="i8", skipped=1.0)
    cost = predict([ffn], 0.0, 1e9, overhead_seconds=1.0)
    assert 1.0 < cost.speedup < 1.0001
    assert predict([ffn], 0.0, 1e9).speedup == pytest.approx(3.0)


def test_formats_and_bad_bandwidth() -> None:
    assert [bits_per_weight(w) for w in ("f32", "f16", "bf16", "i8", "i4")] == [32.0, 16.0, 16.0, 8.5, 4.5]
    with pytest.raises(ValueError, match="bandwidth"):
        predict([], 1.0, 0.0)
