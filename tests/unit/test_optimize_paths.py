"""Paths of `prosparse optimize`: the input is checked first, and is never the output."""

from __future__ import annotations

from pathlib import Path

import pytest

from prosparse_export.errors import ProSparseError
from prosparse_export.optimize import OptimizeOptions, optimize_file


@pytest.mark.parametrize("overwrite", [False, True])
def test_output_is_the_input(overwrite: bool, tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(b"graph")
    (tmp_path / "link.onnx").symlink_to(source)
    for output in (source, tmp_path / "link.onnx"):
        with pytest.raises(ProSparseError, match="expected a new file, got the input file") as caught:
            optimize_file(source, output, OptimizeOptions(overwrite=overwrite))
        assert caught.value.hint == "choose another output file"
    assert source.read_bytes() == b"graph"


def test_input_is_reported_before_the_output(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    output.write_bytes(b"mine")
    with pytest.raises(ProSparseError, match=r"in\.onnx: no such file"):
        optimize_file(tmp_path / "in.onnx", output)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    with pytest.raises(ProSparseError, match=r"expected an \.onnx file, got a folder") as caught:
        optimize_file(tmp_path / "folder", output)
    assert "prosparse-export" in str(caught.value.hint)
    (tmp_path / "folder" / "a.onnx").write_bytes(b"")
    with pytest.raises(ProSparseError) as caught:
        optimize_file(tmp_path / "folder", output)
    assert caught.value.hint == f"pass the file in it: {tmp_path / 'folder' / 'a.onnx'}"
