"""Make MatMulNBits compute with float32 activations, so that only other differences remain."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx.external_data_helper import uses_external_data

__all__ = ["with_float_activations"]


@contextmanager
def with_float_activations(path: Path, room: Path) -> Iterator[Path]:
    """Yield a temporary copy of ``path`` in which MatMulNBits computes in float32 (accuracy_level 0).

    At accuracy level 4 it rounds activations to 8 bits. The copy lies in a folder below ``room``. External data is
    hard-linked where possible, else copied: onnxruntime follows no symbolic link out of the graph's folder.
    """
    proto = onnx.load(path, load_external_data=False)
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in nodes:
            for attribute in node.attribute if node.op_type == "MatMulNBits" else ():
                if attribute.name == "accuracy_level":
                    attribute.i = 0
    names = {
        entry.value
        for tensor in proto.graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    with tempfile.TemporaryDirectory(prefix=".check-", dir=room) as folder:
        for name in (*names, "genai_config.json"):
            if (path.parent / name).is_file():
                (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
                _link((path.parent / name).resolve(), Path(folder) / name)
        onnx.save(proto, Path(folder) / path.name)
        yield Path(folder) / path.name


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or a file of another owner
        shutil.copyfile(source, target)
