"""User errors, paths: wrong arguments and outputs that cannot be written give one line and a hint, before any work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from support.families import family
from support.onnx_text import UNGATED, model

from prosparse_export.cli import main

pytestmark = pytest.mark.integration


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def assert_error(result: Result, error: str, hint: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert [line.partition(": ")[0] for line in lines[-2:]] == ["error", "hint"], result.stderr
    assert error in lines[-2], lines
    assert hint in lines[-1], lines


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_usage_errors_exit_2() -> None:
    assert run("export", "--no-such-option").exit_code == 2
    assert run("export", "only-one-argument").exit_code == 2


@pytest.mark.parametrize("command", main.commands)
def test_help_has_examples(command: str) -> None:
    result = run(command, "-h")
    assert result.exit_code == 0
    assert "\nExamples:\n  prosparse" in result.stdout


@pytest.fixture
def artifact(demo_artifact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_artifact.parent, tmp_path / "out")) / demo_artifact.name


@pytest.mark.parametrize("command", ["bench", "report", "info", "generate"])
def test_folder_in_place_of_the_model(command: str, demo_folder: Path, artifact: Path, tmp_path: Path) -> None:
    more = ["x"] if command == "generate" else []
    assert_error(run(command, demo_folder, *more), "got a folder", f"prosparse-export {demo_folder} OUT.onnx")
    assert_error(run(command, artifact.parent, *more), "got a folder", f"pass the file in it: {artifact}")
    assert_error(run(command, tmp_path, *more), "got a folder", "check the path")
    assert_error(run(command, tmp_path / "none.onnx", *more), "no such file", "prosparse-export MODEL_DIR")


def test_swapped_arguments_of_validate(demo_folder: Path, artifact: Path) -> None:
    assert_error(run("validate", artifact, demo_folder), "expected a folder, got a file", "pass the model folder first")


def test_weights_left_behind(artifact: Path, tmp_path: Path) -> None:
    """Without the manifest, only onnxruntime notices."""
    alone = Path(shutil.copy(artifact, tmp_path / artifact.name))
    assert_error(run("generate", alone, "x"), "cannot open it", f"its weights, {alone.name}.data, are missing")


def test_outputs_of_bench(artifact: Path, tmp_path: Path) -> None:
    began = time.monotonic()
    (tmp_path / "taken.png").write_text("mine")
    assert_error(run("bench", artifact, "--plot", tmp_path / "no" / "x.png"), "its folder does not exist", "mkdir -p")
    assert_error(run("bench", artifact, "--plot", tmp_path / "taken.png"), "already exists", "--overwrite")
    assert_error(run("bench", artifact, "--plot", tmp_path), "got a folder", "add a file name")
    assert_error(run("bench", artifact, "--plot", tmp_path / "x.txt"), "expected a file name ending in .png", "x.png")
    assert (tmp_path / "taken.png").read_text() == "mine"
    assert time.monotonic() - began < 10  # before anything was timed


@pytest.mark.parametrize("option", ["--junit", "--markdown", "--save-reference"])
def test_outputs_of_validate(option: str, demo_folder: Path, artifact: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine")
    assert_error(run("validate", demo_folder, artifact, option, tmp_path / "no" / "x"), "does not exist", "mkdir -p")
    assert_error(run("validate", demo_folder, artifact, option, taken), "already exists", "--overwrite")
    assert taken.read_text() == "mine"


def test_missing_text_of_an_export(demo_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "x.onnx"
    assert_error(
        run("export", demo_folder, output, "--profile-text", tmp_path / "none.txt"), "expected a text file", ""
    )
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
    assert_error(missing, "no such file or folder", "check the path")
    long = run("calibrate", folder, output, "--text", text, "--context", 3000, "--tokens", 3000, "-q")
    assert_error(long, "expected at most 2048 tokens", "--context 2048")
    assert not output.exists()
    assert (folder / "config.json").read_bytes() == before


def test_output_exists(demo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("mine")
    assert_error(run("export", demo_folder, tmp_path / "m.onnx", "-q"), "already exists", "--overwrite")
    assert names(tmp_path) == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "mine"


def test_other_file_of_the_artifact_exists(tmp_path: Path) -> None:
    family("LLaMA (ReluLLaMA)").save(tmp_path / "model")
    output = tmp_path / "out" / "m.onnx"
    output.parent.mkdir()
    (output.parent / "config.json").write_text("{}")
    result = run("export", tmp_path / "model", output, "-q")
    assert_error(result, f"{output.parent / 'config.json'}: already exists, with different contents", "")
    assert names(output.parent) == ["config.json"]
    assert (output.parent / "config.json").read_text() == "{}"


def test_output_in_the_model_folder(tmp_path: Path) -> None:
    family("LLaMA (ReluLLaMA)").save(tmp_path / "model")
    before = names(tmp_path / "model")
    result = run("export", tmp_path / "model", tmp_path / "model" / "m.onnx", "-q", "--overwrite")
    assert_error(result, "got the model folder, whose config.json would be replaced", "choose another folder")
    assert names(tmp_path / "model") == before


@pytest.mark.parametrize(
    "where",
    [
        pytest.param("/proc/prosparse", marks=pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")),
        "under a file",
        pytest.param("read-only", marks=pytest.mark.skipif(os.name == "nt", reason="Windows ignores it for folders")),
    ],
)
def test_unwritable_folder(where: str, demo_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    if where == "under a file":
        target.write_text("mine")
    elif where == "read-only":
        if os.geteuid() == 0:  # root may write anywhere else
            target = Path("/proc")
        else:
            target.mkdir(mode=0o555)
    else:
        target = Path(where)
    assert_error(run("export", demo_folder, target / "m.onnx", "-q"), "error: output: ", "")
    assert not (target / "m.onnx").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        mount = ["sudo", "-n", *mount]
        if shutil.which("sudo") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting a tmpfs needs root or passwordless sudo")
    yield disk
    subprocess.run([*mount[: mount.index("mount")], "umount", str(disk)], check=True)


@pytest.mark.parametrize("free", [None, 1 << 40], ids=["known before", "while writing"])
def test_disk_full(free: int | None, small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    width = 1024  # two matrices of 4 MiB
    arrays = {name: np.ones((width, width), np.float32) for name in ("w_up", "w_down")}
    io = {"x": f"float[b, s, {width}] x", "y": f"float[b, s, {width}] y"}
    onnx.save(model(UNGATED.format("Relu (z)"), arrays, **io), tmp_path / "in.onnx")
    if free is not None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))  # type: ignore[attr-defined]
    result = run("optimize", tmp_path / "in.onnx", small_disk / "m.onnx", "-q")
    assert_error(
        result, f"output: {small_disk}: " + ("disk full" if free is None else "cannot write: disk full"), "free"
    )
    assert names(small_disk) == []
