"""native/ort/ort_abi.h against onnxruntime's real header, where Debian's package of it can be had."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def real_header(folder: Path) -> Path:
    """Download Debian 13's libonnxruntime-dev (API 21) with apt's own folders, outside of the system's."""
    if shutil.which("apt-get") is None or not _KEYRING.is_file():
        pytest.skip("onnxruntime's header comes from Debian's package, which needs apt-get and Debian's keyring")
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True)
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] http://deb.debian.org/debian trixie main\n")
    options = [f"Dir::Etc::sourcelist={sources}", "Dir::Etc::sourceparts=/dev/null"]
    options += [f"Dir::State={folder / 'state'}", f"Dir::Cache={folder / 'cache'}", "APT::Sandbox::User=root"]
    flags = [part for option in options for part in ("-o", option)]
    for command in (["update"], ["download", "libonnxruntime-dev"]):
        done = subprocess.run(["apt-get", *flags, *command], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"apt-get {command[0]} failed, is there a network? {done.stderr.strip()[-200:]}")
    subprocess.run(["dpkg", "-x", str(next(folder.glob("*.deb"))), str(folder / "x")], check=True)
    return next(folder.glob("x/**/onnxruntime_c_api.h")).parent


def compile_against(header: Path, test: Path) -> subprocess.CompletedProcess[str]:
    command = ["c++", "-std=c++17", "-fsyntax-only", f"-I{ROOT / 'native' / 'ort'}", f"-I{header}", str(test)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_slots_sizes_and_numbers_are_the_real_ones(tmp_path: Path) -> None:
    header = real_header(tmp_path)
    test = ROOT / "native" / "tests" / "abi_test.cc"
    done = compile_against(header, test)
    assert done.returncode == 0, done.stderr[-2000:]
    moved = tmp_path / "moved"  # the check itself can fail: one slot further, and it does
    moved.mkdir()
    slice_ = (ROOT / "native" / "ort" / "ort_abi.h").read_text()
    (moved / "ort_abi.h").write_text(slice_.replace("gap250[24]", "gap250[23]").replace("== 274);", "== 273);"))
    (moved / "abi_test.cc").write_text(test.read_text())
    done = compile_against(header, moved / "abi_test.cc")
    assert done.returncode != 0
    assert "KernelContext_ParallelFor moved" in done.stderr
