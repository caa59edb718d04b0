"""Paths that are none, folders for files, outputs that cannot be: said before any work, in one line with a hint."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prosparse_export.cli import main

pytestmark = pytest.mark.integration


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def refused(result: Result, error: str, hint: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert [line.partition(": ")[0] for line in lines[-2:]] == ["error", "hint"], result.stderr
    assert error in lines[-2], lines
    assert hint in lines[-1], lines


@pytest.fixture
def artifact(demo_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_artifact.parent, tmp_path / "out")) / demo_artifact.name


@pytest.mark.parametrize("command", ["bench", "report", "info", "generate"])
def test_folders_in_place_of_the_model(command: str, demo_folder: Path, artifact: Path, tmp_path: Path) -> None:
    more = ["x"] if command == "generate" else []
    refused(run(command, demo_folder, *more), "got a folder", f"prosparse-export {demo_folder} OUT.onnx")
    refused(run(command, artifact.parent, *more), "got a folder", f"name the file in it: {artifact}")
    refused(run(command, tmp_path, *more), "got a folder", "check the path")
    refused(run(command, tmp_path / "none.onnx", *more), "no such file", "prosparse-export MODEL_DIR")


def test_arguments_of_validate_in_the_wrong_order(demo_folder: Path, artifact: Path) -> None:
    refused(run("validate", artifact, demo_folder), "expected a folder, got a file", "the model folder comes first")


def test_weights_that_were_not_copied(artifact: Path, tmp_path: Path) -> None:
    """Without the manifest too, only onnxruntime can say so."""
    alone = Path(shutil.copy(artifact, tmp_path / artifact.name))
    refused(run("generate", alone, "x"), "cannot open it", f"its weights, {alone.name}.data, are missing")


def test_outputs_of_bench(artifact: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    (tmp_path / "taken.png").write_text("mine")
    refused(run("bench", artifact, "--plot", tmp_path / "no" / "x.png"), "its folder does not exist", "mkdir -p")
    refused(run("bench", artifact, "--plot", tmp_path / "taken.png"), "exists already", "--overwrite")
    refused(run("bench", artifact, "--plot", tmp_path), "got a folder", "name a file in it")
    refused(run("bench", artifact, "--plot", tmp_path / "x.txt"), "expected a name that ends in .png", "x.png")
    assert (tmp_path / "taken.png").read_text() == "mine"
    assert time.monotonic() - began < 10  # before anything was timed


@pytest.mark.parametrize("option", ["--junit", "--markdown", "--save-reference"])
def test_outputs_of_validate(option: str, demo_folder: Path, artifact: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    refused(run("validate", demo_folder, artifact, option, tmp_path / "no" / "x"), "does not exist", "mkdir -p")
    refused(run("validate", demo_folder, artifact, option, taken), "exists already", "--overwrite")
    assert taken.read_text() == "mine"


def test_text_of_an_export_is_read_first(demo_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "x.onnx"
    refused(run("export", demo_folder, output, "--profile-text", tmp_path / "none.txt"), "expected a text file", "")
    assert not output.parent.exists()


def test_calibrate(demo_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo_folder, tmp_path / "model"))
    before = (folder / "config.json").read_bytes()
    text = tmp_path / "text.txt"
    text.write_text("Some words. " * 4000)
    same = run("calibrate", folder, folder, "--text", text)
    assert same.exit_code == 2
    assert "--in-place" in same.stderr
    output = tmp_path / "calibrated"
    missing = run("calibrate", folder, output, "--text", tmp_path / "none.jsonl", "-q")
    refused(missing, "got nothing there", "check the path")
    long = run("calibrate", folder, output, "--text", text, "--context", 3000, "--tokens", 3000, "-q")
    refused(long, "expected at most 2048 tokens", "--context 2048")
    assert not output.exists()
    assert (folder / "config.json").read_bytes() == before
