"""The scales of an artifact's quantized matrices, by module path."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from graph_passes import parts_of
from prosparse_export.analysis.ffn_nodes import initializer, read_graph

__all__ = ["StoredScales", "stored_scales"]

_NAME = re.compile(r"(.+)\.weight(?:_t)?\.(?:i8|i4|nl4)(?:\.\d+)?_scale")


class StoredScales(NamedTuple):
    """Where an artifact stores the scales of a module's matrix.

    Attributes:
        graph: the artifact's, without external data.
        folder: the artifact's folder.
        name: the initializer.
        before: modules whose rows precede in it: those packed into the same matrix.
    """

    graph: onnx.ModelProto
    folder: Path
    name: str
    before: tuple[str, ...]

    def read(self) -> NDArray[np.float16]:
        """Return the whole initializer, ``[rows, groups]``."""
        array: NDArray[np.float16] = initializer(self.graph, self.folder, self.name)  # type: ignore[assignment]
        return array

    def read_integers(self) -> NDArray[np.int8 | np.uint8]:
        """Return the initializer of the integers that belong to them, ``[rows, columns as stored]``."""
        name = self.name.removesuffix("_scale")
        array: NDArray[np.int8 | np.uint8] = initializer(self.graph, self.folder, name)  # type: ignore[assignment]
        return array

    def read_powers(self) -> NDArray[np.float32] | None:
        """Return the powers of two that the outputs of a down_proj are multiplied by, ``[d_model]``; None without."""
        name = self.name.removesuffix("_scale") + "_power"
        try:
            array: NDArray[np.float32] = initializer(self.graph, self.folder, name)  # type: ignore[assignment]
        except KeyError:
            return None
        return array


def stored_scales(path: Path) -> dict[str, StoredScales]:
    """Return where the artifact ``path`` stores scales, by module path. Tied matrices are under one of their names."""
    graph = read_graph(path)
    found = {}
    for tensor in graph.graph.initializer:
        match = _NAME.fullmatch(tensor.name)
        if match:
            parts = parts_of(match[1])
            for place, part in enumerate(parts):
                found[part] = StoredScales(graph, path.parent, tensor.name, tuple(parts[:place]))
    return found
