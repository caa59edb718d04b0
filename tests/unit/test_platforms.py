from __future__ import annotations

import re

import pytest
from conftest import ROOT

from prosparse_export.artifact.platforms import LIBRARY_FILES, PLATFORMS, library_file, this_platform


@pytest.mark.parametrize(
    ("system", "machine", "name"),
    [
        ("Linux", "x86_64", "linux-x86_64"),
        ("Linux", "aarch64", "linux-aarch64"),
        ("Windows", "AMD64", "windows-x86_64"),
        ("Windows", "ARM64", "windows-arm64"),
        ("Darwin", "arm64", "macos-arm64"),
        ("Darwin", "x86_64", "macos-x86_64"),
        ("Android", "aarch64", "android-arm64"),
    ],
)
def test_python_names_every_platform(system: str, machine: str, name: str) -> None:
    assert this_platform(system, machine) == name
    assert name in PLATFORMS


def test_another_platform_has_a_name_and_a_file() -> None:
    name = this_platform("FreeBSD", "riscv64")
    assert name == "freebsd-riscv64"
    assert name not in PLATFORMS
    assert library_file(name) == "libprosparse_ops.so"


def test_this_machine_is_known() -> None:
    assert this_platform() in PLATFORMS
    assert library_file(this_platform()) == LIBRARY_FILES[this_platform()]


def test_the_cross_build_has_a_target_for_each_but_android() -> None:
    script = (ROOT / "packaging" / "libraries.py").read_text(encoding="utf-8")
    assert {*re.findall(r'^    "([\w-]+)": "', script, re.MULTILINE)} == {*PLATFORMS} - {"android-arm64"}
