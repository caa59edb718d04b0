"""native/ort/ort_abi.h against onnxruntime's real header, where Debian's package of it can be had."""

from __future__ import annotations

import subprocess
from pathlib import Path

from conftest import ROOT


def compile_against(header: Path, test: Path) -> subprocess.CompletedProcess[str]:
    command = ["c++", "-std=c++17", "-fsyntax-only", f"-I{ROOT / 'native' / 'ort'}", f"-I{header}", str(test)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_slots_sizes_and_numbers_are_the_real_ones(onnxruntime_headers: Path, tmp_path: Path) -> None:
    header = onnxruntime_headers
    test = ROOT / "native" / "tests" / "abi_test.cc"
    done = compile_against(header, test)
    assert done.returncode == 0, done.stderr[-2000:]
    moved = tmp_path / "moved"  # the check itself can fail: one slot further, and it does
    moved.mkdir()
    slice_ = (ROOT / "native" / "ort" / "ort_abi.h").read_text()
    (moved / "ort_abi.h").write_text(slice_.replace("gap250[24]", "gap250[23]").replace("== 274);", "== 273);"))
    for file in (test, ROOT / "native" / "ort" / "ep_abi.h"):
        (moved / file.name).write_text(file.read_text())
    done = compile_against(header, moved / "abi_test.cc")
    assert done.returncode != 0
    assert "KernelContext_ParallelFor moved" in done.stderr
