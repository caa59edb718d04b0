"""`prosparse generate` where the installed operator library is missing, another processor's, or damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prosparse_export.artifact.platforms import LIBRARY_FILES, this_platform
from prosparse_export.cli import main
from prosparse_export.runtime import operator_library
from prosparse_export.runtime.operator_library import library_path

pytestmark = pytest.mark.integration


def generate(artifact: Path, *more: str) -> Result:
    return CliRunner().invoke(main, ["generate", str(artifact), "The city of Paris is", "-n", "8", *more])


@pytest.mark.parametrize("problem", ["missing", "another processor's", "damaged"])
def test_the_function_bodies_run_or_it_is_an_error(
    problem: str, demo_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, data = generate(demo_artifact), bytearray(library_path().read_bytes())
    monkeypatch.delenv("PROSPARSE_OPS_LIBRARY", raising=False)
    monkeypatch.delenv("PROSPARSE_ISA", raising=False)
    monkeypatch.setattr(operator_library, "library_folders", lambda: [tmp_path])
    library = tmp_path / this_platform() / LIBRARY_FILES[this_platform()]
    library.parent.mkdir()
    if problem == "another processor's":
        struct.pack_into("<H", data, 18, 243)  # e_machine in ELF: RISC-V
    if problem == "damaged":
        del data[len(data) // 2 :]
    if problem != "missing":
        library.write_bytes(data)

    done = generate(demo_artifact)
    assert (done.exit_code, done.stdout) == (0, expected.stdout)
    line, times = done.stderr.splitlines()
    assert line.startswith("operator library: ")
    assert line.endswith("; running the dense function bodies instead")
    assert times.startswith("first token ")

    done = generate(demo_artifact, "--require-library")
    assert (done.exit_code, done.stdout) == (1, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: operator library: ")
    assert hint.startswith("hint: ")
