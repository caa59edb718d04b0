"""What a server needs, against the machine's limits."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import pytest

from prosparse_export import ProSparseError
from prosparse_export.serve.memory import WindowsMemoryStatus, available_bytes, check_memory, memory_needs


def test_needs(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"1" * 10)
    (tmp_path / "m.onnx.data").write_bytes(b"1" * 90)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 4, "vocab_size": 100}))
    needs = memory_needs(tmp_path / "m.onnx", rows=2, capacity=1000, token_bytes=64, prefixes=5000)
    assert (needs.weights, needs.cache, needs.prefixes) == (100, 128_000, 5000)
    assert needs.scratch == 4 * (4 * 512 * 1000 + 2 * 2 * 100) + 8 * 2 * 1000
    assert needs.total == needs.weights + needs.cache + needs.prefixes + needs.scratch + 200_000_000
    check_memory(needs, needs.total)
    with pytest.raises(
        ProSparseError, match=r"memory: the server may need 0\.21 GB \(weights .*, but 0\.21 GB are"
    ) as caught:
        check_memory(needs, needs.total - 1)
    assert "--context" in (caught.value.hint or "")


def test_the_lower_limit_counts(tmp_path: Path) -> None:
    limit, none = tmp_path / "limit", tmp_path / "none"
    limit.write_text("1234\n")
    none.write_text("max\n")
    assert available_bytes((none, limit, tmp_path / "missing")) == 1234
    assert available_bytes(()) > 1 << 20


def test_layout_that_windows_expects() -> None:
    assert ctypes.sizeof(WindowsMemoryStatus) == 64
    assert WindowsMemoryStatus.physical.offset == 8
