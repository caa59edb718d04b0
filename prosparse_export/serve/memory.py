"""How much memory a server needs at most, known before it accepts a request."""

from __future__ import annotations

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from prosparse_export.artifact.model_settings import read_settings
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.decode_loop import PREFILL_TOKENS

__all__ = ["MemoryNeeds", "available_bytes", "check_memory", "memory_needs"]

_PROCESS = 200_000_000  # bytes of Python, onnxruntime, and the other packages: resident after start, model apart
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class MemoryNeeds:
    """Bytes by purpose.

    Attributes:
        weights: of the model; the library keeps one copy.
        cache: keys and values of all rows, filled to the end.
        prefixes: keys and values of earlier prompts.
        scratch: attention scores of the largest chunk of a prompt, masks, and logits.
        process: Python, onnxruntime, and the other packages.
    """

    weights: int
    cache: int
    prefixes: int
    scratch: int
    process: int = _PROCESS

    @property
    def total(self) -> int:
        """Sum of all purposes."""
        return self.weights + self.cache + self.prefixes + self.scratch + self.process

    def __str__(self) -> str:
        parts = {
            "weights": self.weights,
            "KV cache": self.cache,
            "prefix cache": self.prefixes,
            "scratch": self.scratch,
            "Python and onnxruntime": self.process,
        }
        return f"{_gb(self.total)} ({', '.join(f'{name} {_gb(size)}' for name, size in parts.items())})"


def memory_needs(path: Path, *, rows: int, capacity: int, token_bytes: int, prefixes: int) -> MemoryNeeds:
    """Return what serving the artifact ``path`` needs.

    Args:
        path: the graph.
        rows: texts at a time.
        capacity: tokens per text.
        token_bytes: bytes of a token in the cache.
        prefixes: limit of the prefix cache in bytes.
    """
    config = read_settings(path.parent / "config.json")
    text = {**config, **(config.get("text_config") or {})}
    heads, vocabulary = int(text.get("num_attention_heads") or 0), int(text.get("vocab_size") or 0)
    chunk = min(PREFILL_TOKENS, capacity)
    scores = heads * max(chunk * capacity, rows * capacity)
    activations = chunk * int(text.get("intermediate_size") or 0) * 3
    return MemoryNeeds(
        weights=sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")),
        cache=rows * capacity * token_bytes,
        prefixes=prefixes,
        scratch=4 * (scores + activations + 2 * rows * vocabulary) + 8 * rows * capacity,
    )


def available_bytes(limits: tuple[Path, ...] = _LIMITS) -> int:
    """Return the machine's memory, or the control group's limit if that is lower."""
    size = _physical_bytes()
    for path in limits:
        try:
            size = min(size, int(path.read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return size


def _physical_bytes() -> int:
    if sys.platform != "win32":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    status = WindowsMemoryStatus(length=ctypes.sizeof(WindowsMemoryStatus))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        raise ctypes.WinError()
    return int(status.physical)


class WindowsMemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load", ctypes.c_uint32),
        ("physical", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 6),
    )


def check_memory(needs: MemoryNeeds, available: int) -> None:
    """Fail if a server could run out of memory.

    Raises:
        ProSparseError: it needs more than ``available`` bytes.
    """
    if needs.total > available:
        raise ProSparseError(
            f"memory: the server may need {needs}, but {_gb(available)} are available",
            hint="lower --max-batch, --context or --prefix-cache",
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
