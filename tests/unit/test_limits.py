"""Limits from options and TOML files."""

from __future__ import annotations

from pathlib import Path

import pytest

from prosparse_export.errors import ProSparseError
from prosparse_export.validation.limits import Limits, parse_share, parse_sparsity, read_limits


def test_shares_and_sparsities() -> None:
    assert parse_share("0.5%", "x") == 0.005
    assert parse_share("99.5 %", "x") == 0.995
    assert parse_share(0.25, "x") == parse_share("0.25", "x") == 0.25
    limits = parse_sparsity(["80%", "layer 7: 85%", "Layer 0:0.5"])
    assert (limits.min_sparsity, limits.min_sparsity_by_layer) == (0.8, {7: 0.85, 0: 0.5})
    for text in ("much", "101%", "80", "-1%", "nan"):
        with pytest.raises(ProSparseError):
            parse_share(text, "x")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("150%", "for example 80% (or 0.8)"),
        ("150", "for example 80% (or 0.8)"),
        ("-1%", "for example 80% (or 0.8)"),
        ("99.5", "add a % sign: 99.5%"),
        (99.5, "add a % sign: 99.5%"),
    ],
)
def test_hint_for_a_share_out_of_range(text: str | float, hint: str) -> None:
    with pytest.raises(ProSparseError, match="expected 0% to 100%") as caught:
        parse_share(text, "min-top1")
    assert caught.value.hint == hint


def test_limits_file(tmp_path: Path) -> None:
    path = tmp_path / "limits.toml"
    path.write_text('max_ppl_increase = "0.5%"\nmax_kl = 0.01\nmin_top1 = 0.99\n[min_sparsity_by_layer]\n7 = "85%"\n')
    limits = read_limits(path)
    assert limits == Limits(0.005, 0.99, None, 0.01, None, {7: 0.85})
    merged = limits.updated(Limits(max_kl=0.5, min_sparsity_by_layer={1: 0.1}))
    assert merged == Limits(0.005, 0.99, None, 0.5, None, {7: 0.85, 1: 0.1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_perplexity = 3", "unknown key 'max_perplexity'"),
        ("[limits]\nmax_kl = 1", "unknown key 'limits'"),
        ("max_kl = ", "expected TOML"),
        ('max_kl = "1%"', "expected a number"),
        ("min_top1 = 99.5", "expected 0% to 100%"),
        ("min_top1 = true", "expected a percentage"),
        ("min_sparsity_by_layer = 3", "expected a table"),
    ],
)
def test_bad_limits_file(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "limits.toml").write_text(text)
    with pytest.raises(ProSparseError, match=message) as caught:
        read_limits(tmp_path / "limits.toml")
    assert caught.value.hint is not None
