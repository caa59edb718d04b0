"""Opening a graph: errors that name the file, and options that are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.session import open_session


def written(folder: Path, *, outside: bool = False) -> Path:
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { y = Add (x, w) }'
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    path = folder / "m.onnx"
    onnx.save(proto, path, save_as_external_data=outside, size_threshold=0, location="m.onnx.data")
    return path


@pytest.mark.parametrize("library", [False, True])
@pytest.mark.parametrize("outside", [False, True])
def test_a_graph_opens_and_runs(library: bool, outside: bool, tmp_path: Path) -> None:
    session = open_session(written(tmp_path, outside=outside), library=library)
    assert session.run(None, {"x": np.asarray([1, 2], np.float32)})[0].tolist() == [2, 3]


def test_options(tmp_path: Path) -> None:
    path = written(tmp_path)
    session = open_session(path, threads=2, spinning=False, library=False)
    options = session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    mine = onnxruntime.SessionOptions()
    mine.intra_op_num_threads = 3
    assert open_session(path, library=False, session_options=mine).get_session_options().intra_op_num_threads == 3
    open_session(path, library=False, threads=1, session_options=mine)
    assert mine.intra_op_num_threads == 1


def test_files_that_do_not_open(tmp_path: Path) -> None:
    path = written(tmp_path, outside=True)
    with pytest.raises(ProSparseError, match=r"no\.onnx") as missing:
        open_session(tmp_path / "no.onnx", library=False)
    assert missing.value.hint
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(ProSparseError, match=r"m\.onnx: onnxruntime \S+ cannot open it: ") as without:
        open_session(path, library=False)
    assert without.value.hint == "its weights, m.onnx.data, are missing: copy the artifact's whole folder"
    path.write_bytes(b"damaged")
    with pytest.raises(ProSparseError, match="cannot open it: ") as damaged:
        open_session(path, library=False)
    assert "if the file is damaged, export it again" in str(damaged.value.hint)
    assert "\n" not in str(damaged.value)
    with pytest.raises(ProSparseError, match=r"expected a prosparse\.json with the hash of m\.onnx"):
        open_session(path, library=False, verify=True)
