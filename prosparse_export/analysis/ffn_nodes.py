"""Read an artifact's graph: its sparse FFN operators and its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import external_data_helper, numpy_helper

from graph_passes.custom_ops import DOMAIN, SCALE_OUTPUTS, format_in
from graph_passes.formats import FfnFormat
from prosparse_export.artifact.integrity import missing_model
from prosparse_export.errors import ProSparseError

__all__ = ["FfnNode", "ffn_nodes", "initializer", "read_graph"]

_FFN = ("SparseGatedFFN", "SparseFFN")


@dataclass(frozen=True)
class FfnNode:
    """A sparse FFN operator in a graph.

    Attributes:
        node: the node, which has the name of the PyTorch module.
        layer: index in graph order.
        weights: format of the matrices.
        gated: whether it has a gate_proj.
        activation: relu, relu2, fatrelu, drelu or silu.
        threshold: the activation's threshold.
        output: the FFN's output: the node's, or that of the Mul by ``powers``.
        powers: initializer of the powers of two that the node's outputs are multiplied by, ``[d_model]``; "" for none.
    """

    node: onnx.NodeProto
    layer: int
    weights: FfnFormat
    gated: bool
    activation: str
    threshold: float
    output: str
    powers: str = ""

    @property
    def module(self) -> str:
        """The PyTorch module that it replaces."""
        return str(self.node.name)


def read_graph(path: Path) -> onnx.ModelProto:
    """Return the graph without its external data.

    Raises:
        ProSparseError: the file is missing or not an ONNX model.
    """
    try:
        return onnx.load(str(path), load_external_data=False)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise missing_model(path) from error
    except OSError as error:
        raise ProSparseError(
            f"model: {path}: cannot be read: {error.strerror}", hint="check the file's permissions"
        ) from error
    except Exception as error:  # protobuf's DecodeError is in no stable place
        raise ProSparseError(
            f"model: {path}: not a valid ONNX file: {' '.join(str(error).split())}", hint="export the model again"
        ) from error


def ffn_nodes(model: onnx.ModelProto) -> list[FfnNode]:
    """Return the sparse FFN operators in graph order."""
    found: list[FfnNode] = []
    multiplied = {node.input[0]: node for node in model.graph.node if node.name.endswith(SCALE_OUTPUTS)}
    for node in model.graph.node:
        if node.domain != DOMAIN or not node.op_type.startswith(_FFN):
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        scaled = multiplied.get(node.output[0])
        found.append(
            FfnNode(
                node,
                len(found),
                format_in(node.op_type),
                node.op_type.startswith("SparseGatedFFN"),
                attributes["activation"].decode(),
                float(attributes["threshold"]),
                node.output[0] if scaled is None else scaled.output[0],
                "" if scaled is None else scaled.input[1],
            )
        )
    return found


def initializer(model: onnx.ModelProto, folder: Path, name: str) -> NDArray[np.generic]:
    """Return the value of an initializer.

    Raises:
        ProSparseError: its external data cannot be read.
        KeyError: the graph has no initializer of that name.
    """
    tensor = onnx.TensorProto()
    tensor.CopyFrom(next((t for t in model.graph.initializer if t.name == name), None) or _missing(name))
    if external_data_helper.uses_external_data(tensor):
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:  # onnx raises several kinds
            raise ProSparseError(
                f"model: {folder}: cannot read the weights of {name}: {' '.join(str(error).split())}",
                hint="the .onnx.data file is missing or truncated: export the model again",
            ) from error
    array: NDArray[np.generic] = numpy_helper.to_array(tensor)
    return array


def _missing(name: str) -> onnx.TensorProto:
    raise KeyError(name)
