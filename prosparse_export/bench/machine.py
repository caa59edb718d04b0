"""Describe the machine, and this process's memory on it."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from prosparse_export.runtime.operator_library import library_info

__all__ = ["describe_machine", "resident_bytes"]


def describe_machine(threads: int) -> str:
    """Return processor, instruction set, number of threads and onnxruntime's version."""
    parts = [_processor(), f"ISA {library_info().isa_used}", f"{threads} thread{'s' if threads > 1 else ''}"]
    return ", ".join([*parts, f"onnxruntime {onnxruntime.__version__}"])


def resident_bytes() -> int | None:
    """Return this process's resident memory in bytes; None on systems without /proc."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
