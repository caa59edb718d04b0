"""`prosparse validate` and `prosparse info` as a user meets them: outputs, files, limits, bad input."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prosparse_export.cli import main

pytestmark = pytest.mark.integration
FAST = ["-q", "--max-tokens", "128", "--context", "64", "--greedy", "4", "--step-tokens", "8"]


@pytest.fixture
def artifact(demo_artifact: Path, tmp_path: Path) -> Path:
    """A copy whose manifest may change."""
    return Path(shutil.copytree(demo_artifact.parent, tmp_path / "out")) / demo_artifact.name


@pytest.fixture
def run(demo_folder: Path, artifact: Path) -> Callable[..., Result]:
    def call(*more: object, folder: Path = demo_folder) -> Result:
        return CliRunner().invoke(main, ["validate", str(folder), str(artifact), *FAST, *map(str, more)])

    return call


def assert_user_error(result: Result, text: str) -> None:
    assert result.exit_code == 1, result.output
    lines = result.stderr.strip().splitlines()
    assert [line.partition(": ")[0] for line in lines] == ["error", "hint"], result.stderr
    assert text in lines[0]


def test_limits_reports_and_manifest(run: Callable[..., Result], artifact: Path, tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text('min_top1 = "50%"\nmin_sparsity = "5%"\n')
    files = ["--junit", tmp_path / "j.xml", "--markdown", tmp_path / "m.md", "--json", "--limits", limits]
    passed = run(*files)
    assert passed.exit_code == 0, passed.output
    values = json.loads(passed.stdout)
    assert values["passed"] is True
    assert {c["name"] for c in values["checks"]} >= {"top-1 agreement", "sparsity", "bit-identical runs"}
    assert [q["name"] for q in values["quality"]] == ["without library", "with library"]
    modules = {o["module"] for o in values["operators"]}
    assert {f"model.layers.{i}.mlp" for i in range(len(values["sparsity"]["by_layer"]))} < modules
    assert {"model.layers.0.self_attn.o_proj", "lm_head"} < modules
    assert values["stored_weights"]["wrong"] == []
    assert values["stored_weights"]["share"] > 0.999
    assert ET.parse(tmp_path / "j.xml").getroot().get("failures") == "0"
    again = run(*files)
    assert_user_error(again, "already exists")
    files.append("--overwrite")
    broken = run(*files, "--min-sparsity", "layer 1: 100%", "--max-ppl-increase", "0%", "--min-sparsity", "100%")
    assert broken.exit_code == 1
    failed = {c["name"]: c for c in json.loads(broken.stdout)["checks"] if not c["passed"]}
    assert {"sparsity", "sparsity of layer 1"} <= set(failed)
    assert failed["sparsity"]["allowed"] == "at least 100.00%"
    assert "**FAIL**" in (tmp_path / "m.md").read_text()
    kept = json.loads((artifact.parent / "prosparse.json").read_text())["validation"]
    assert kept["passed"] is False
    info = CliRunner().invoke(main, ["info", str(artifact)])
    assert info.exit_code == 0, info.output
    assert "failed: sparsity: measured" in info.stdout
    assert "validate again" not in info.stdout
    data = artifact.with_name(f"{artifact.name}.data")
    contents = data.read_bytes()
    data.write_bytes(contents + bytes(4096))
    assert "validate again" in CliRunner().invoke(main, ["info", str(artifact)]).stdout
    data.write_bytes(contents)
    artifact.write_bytes(artifact.read_bytes() + b"\x00")
    assert "validate again" in CliRunner().invoke(main, ["info", str(artifact)]).stdout


def test_reference_file(run: Callable[..., Result], artifact: Path, tmp_path: Path) -> None:
    file, text = tmp_path / "demo.ref", tmp_path / "other.txt"
    first = run("--save-reference", file, "--json")
    assert first.exit_code == 0, first.output
    again = run("--reference", file, "--json")
    assert again.exit_code == 0, again.output
    one, two = (json.loads(r.stdout) for r in (first, again))
    assert one["comparisons"] == two["comparisons"]
    assert one["quality"] == two["quality"]
    assert two["operators"] == one["operators"]  # the folder has the weights, if no model runs
    assert two["stored_weights"] == one["stored_weights"]
    text.write_text("Another text. " * 60)
    assert_user_error(run("--reference", file, "--text", text), "expected this text, got another text or tokenizer")
    assert_user_error(run("--reference", file, "--stride", "64"), "expected these windows, got others")
    assert_user_error(run("--reference", file, "--greedy", "9"), "expected 9 greedy tokens per prompt, got 4")
    assert_user_error(run("--reference", text), "not a file written by --save-reference")
    assert [p.name for p in artifact.parent.iterdir() if p.name.startswith(".")] == []


def test_low_memory_gives_the_same_numbers(run: Callable[..., Result]) -> None:
    usual, low = (json.loads(run("--json", *options).stdout) for options in ((), ("--low-memory",)))
    assert low["comparisons"] == usual["comparisons"]
    assert low["quality"] == usual["quality"]


def test_repeat_covers_the_text(run: Callable[..., Result]) -> None:
    values = json.loads(run("--repeat", "--json").stdout)
    assert values["determinism"]["threads"][0] == 1
    assert values["determinism"]["threads"][1] > 1
    assert values["determinism"]["tokens"] > 128
    assert values["determinism"]["differing"] == 0


def test_bad_input(run: Callable[..., Result], demo_folder: Path, tmp_path: Path) -> None:
    limits = tmp_path / "limits.toml"
    limits.write_text("max_perplexity = 3\n")
    assert_user_error(run("--limits", limits), "unknown key 'max_perplexity'")
    for data, text in ((b"", "empty file"), (b"a\0b", "binary"), ("ü".encode("latin-1"), "another encoding")):
        (tmp_path / "x.txt").write_bytes(data)
        assert_user_error(run("--text", tmp_path / "x.txt"), text)
    (tmp_path / "x.txt").write_text("Too short.")
    assert_user_error(run("--text", tmp_path / "x.txt"), "expected at least 16 tokens")
    assert_user_error(run("--text", tmp_path / "none.txt"), "expected a text file")
    assert_user_error(run("--stride", "65"), "stride: expected at most the context")
    other = Path(shutil.copytree(demo_folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "__pycache__")))
    (other / "config.json").write_text((other / "config.json").read_text().replace("1e-05", "1e-06"))
    assert_user_error(run(folder=other), "was exported from another model")
    shutil.copyfile(demo_folder / "config.json", other / "config.json")
    for file in other.glob("token*"):
        file.unlink()
    assert_user_error(run(folder=other), "expected tokenizer.json, got no tokenizer")
    assert_user_error(run(folder=tmp_path / "none"), "no such folder")
