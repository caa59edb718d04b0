"""The platforms that the operator library is built for: their names, and the library's file name on each."""

from __future__ import annotations

import platform

__all__ = ["LIBRARY_FILES", "PLATFORMS", "library_file", "this_platform"]

LIBRARY_FILES = {
    "linux-x86_64": "libprosparse_ops.so",
    "linux-aarch64": "libprosparse_ops.so",
    "windows-x86_64": "prosparse_ops.dll",
    "windows-arm64": "prosparse_ops.dll",
    "macos-arm64": "libprosparse_ops.dylib",
    "macos-x86_64": "libprosparse_ops.dylib",
    "android-arm64": "libprosparse_ops.so",
}
PLATFORMS = tuple(LIBRARY_FILES)
_SYSTEMS = {"Linux": "linux", "Windows": "windows", "Darwin": "macos", "Android": "android"}
_MACHINES = {"amd64": "x86_64", "x86_64": "x86_64", "arm64": "arm64", "aarch64": "arm64"}


def this_platform(system: str | None = None, machine: str | None = None) -> str:
    """Return this machine's platform; for a system or processor that is not in `PLATFORMS`, a name of the same form.

    Args:
        system: platform.system(), by default this machine's.
        machine: platform.machine(), by default this machine's.
    """
    system, machine = system or platform.system(), (machine or platform.machine()).lower()
    system, machine = _SYSTEMS.get(system, system.lower()), _MACHINES.get(machine, machine)
    return "linux-aarch64" if (system, machine) == ("linux", "arm64") else f"{system}-{machine}"


def library_file(name: str) -> str:
    """Return the library's file name on platform ``name``, which need not be in `PLATFORMS`."""
    return LIBRARY_FILES.get(name, "libprosparse_ops.so")
