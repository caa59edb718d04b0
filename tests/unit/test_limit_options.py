"""Limit options of the command line become limits, over those of a file."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from prosparse_export.cli.limit_options import LimitOptions, limit_options
from prosparse_export.errors import ProSparseError
from prosparse_export.validation import Limits


def parse(*arguments: str) -> Limits:
    found: list[tuple[str, LimitOptions]] = []

    @click.command()
    @click.argument("name")
    @limit_options
    @click.option("--other", is_flag=True)
    def command(name: str, limits: LimitOptions, other: bool) -> None:
        assert other
        found.append((name, limits))

    done = CliRunner().invoke(command, ["x", "--other", *arguments])
    assert done.exit_code == 0, done.output
    return found[0][1].limits()


def test_no_option_is_no_limit() -> None:
    assert parse() == Limits()


def test_options_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text('max_kl = 0.01\nmin_top1 = "90%"\n[min_sparsity_by_layer]\n7 = "85%"\n')
    arguments = ["--limits", str(file), "--min-top1", "99.5%", "--min-top5", "0.999", "--max-ppl-increase", "0.5%"]
    arguments += ["--min-greedy-match", "50%", "--min-sparsity", "80%", "--min-sparsity", "layer 1: 10%"]
    assert parse(*arguments) == Limits(0.005, 0.995, 0.999, 0.01, 0.8, {7: 0.85, 1: 0.1}, 0.5)


def test_a_wrong_share_names_its_option() -> None:
    with pytest.raises(ProSparseError, match="--min-top1: expected 0% to 100%"):
        parse("--min-top1", "99")
