"""examples/c and examples/cpp: programs in C, without onnxruntime's headers, and in C++ give Python's tokens."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
from conftest import ROOT

from prosparse_export import ExportOptions, export_model, load
from prosparse_export.artifact.libraries import library_in_artifact
from prosparse_export.artifact.platforms import this_platform

pytestmark = pytest.mark.integration

PROMPT, COUNT = [1, 5, 9], 12
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def runtime() -> Path:
    """onnxruntime's library in its wheel."""
    found = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"), None)
    if found is None or shutil.which("cc") is None:
        pytest.skip("needs a C compiler and a wheel with libonnxruntime.so (Linux)")
    return found


@pytest.fixture(scope="module")
def run(demo_artifact: Path, runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Compile the example; return a function that runs it with a library and more arguments."""
    program = tmp_path_factory.mktemp("c") / "generate"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, str(ROOT / "examples/c/generate.c"), "-o", str(program), "-ldl"], check=True)

    def run(library: Path, *more: str, artifact: Path = demo_artifact) -> subprocess.CompletedProcess[str]:
        words = [str(runtime), str(artifact), str(library), str(COUNT), *map(str, PROMPT), *more]
        return subprocess.run([str(program), *words], capture_output=True, text=True, check=False)

    return run


def tokens(artifact: Path) -> list[int]:
    return [int(step[0]) for step in load(artifact).stream([PROMPT], max_new_tokens=COUNT)]


@pytest.fixture(scope="module")
def expected(demo_artifact: Path) -> list[int]:
    return tokens(demo_artifact)


@pytest.fixture(scope="module")
def in_8_bits(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = ExportOptions(kv_cache="i8-token")
    return export_model(demo_folder, tmp_path_factory.mktemp("token") / "m.onnx", options).path


def test_the_artifacts_library(run: Run, demo_artifact: Path, expected: list[int]) -> None:
    done = run(demo_artifact.parent / library_in_artifact(this_platform()), "--require-library")
    assert done.returncode == 0, done.stderr
    assert [*map(int, done.stdout.split())] == expected
    assert done.stderr == ""


def test_a_cache_in_8_bits(run: Run, in_8_bits: Path) -> None:
    done = run(in_8_bits.parent / library_in_artifact(this_platform()), "--require-library", artifact=in_8_bits)
    assert done.returncode == 0, done.stderr
    assert [*map(int, done.stdout.split())] == tokens(in_8_bits)


@pytest.mark.parametrize("problem", ["missing", "another processor's", "damaged"])
def test_a_library_that_cannot_be_used(
    problem: str, run: Run, demo_artifact: Path, expected: list[int], tmp_path: Path
) -> None:
    data = bytearray((demo_artifact.parent / library_in_artifact(this_platform())).read_bytes())
    if problem == "another processor's":
        struct.pack_into("<H", data, 18, 243)  # e_machine: RISC-V
    if problem == "damaged":
        data[:64] = bytes(64)
    library = tmp_path / "libprosparse_ops.so"
    if problem != "missing":
        library.write_bytes(data)
    done = run(library)
    assert [*map(int, done.stdout.split())] == expected  # the function bodies
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"warning: {library}: ")
    assert line.endswith("dense function bodies run instead")
    done = run(library, "--require-library")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {library}: ")


def test_cpp(
    demo_artifact: Path,
    in_8_bits: Path,
    runtime: Path,
    onnxruntime_headers: Path,
    expected: list[int],
    tmp_path: Path,
) -> None:
    (tmp_path / "libonnxruntime.so.1").symlink_to(runtime)  # the name that programs look for
    program = tmp_path / "generate"
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-isystem{onnxruntime_headers}"]
    source = str(ROOT / "examples/cpp/generate.cc")
    command = ["c++", *flags, source, str(runtime), f"-Wl,-rpath,{tmp_path}", "-o", str(program)]
    subprocess.run(command, check=True)

    def run(library: object, artifact: Path = demo_artifact) -> subprocess.CompletedProcess[str]:
        words = [str(artifact), str(library), str(COUNT), *map(str, PROMPT)]
        return subprocess.run([str(program), *words], capture_output=True, text=True, check=False)

    for library in (demo_artifact.parent / library_in_artifact(this_platform()), "-"):
        done = run(library)
        assert (done.returncode, done.stderr) == (0, "")
        assert [*map(int, done.stdout.split())] == expected
    done = run(in_8_bits.parent / library_in_artifact(this_platform()), in_8_bits)
    assert (done.returncode, done.stderr) == (0, "")
    assert [*map(int, done.stdout.split())] == tokens(in_8_bits)
    done = run(tmp_path / "none")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ")
