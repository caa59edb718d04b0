"""Look inside an artifact: its feed-forward nodes, and sessions of edited copies of its graph."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import external_data_helper, numpy_helper

from graph_passes.custom_ops import DOMAIN, QUANT_BLOCK, FfnFormat, format_in, format_of, function_proto, names
from prosparse_export.artifact.integrity import no_model
from prosparse_export.artifact.writer import read_manifest
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.operator_library import disabled_optimizers, register

__all__ = ["FfnNode", "add_output", "edited_session", "ffn_nodes", "read_graph", "unknown_to_the_library"]

_FFN = ("SparseGatedFFN", "SparseFFN")
_FOLDER = "session.model_external_initializers_file_folder_path"  # onnxruntime >= 1.21


@dataclass(frozen=True)
class FfnNode:
    """A sparse feed-forward operator in a graph.

    Attributes:
        node: the node; its name is the PyTorch module's.
        layer: its number in the graph's order.
        weights: the format of its matrices.
        gated: it has a gate.
        activation: relu, relu2, fatrelu, drelu or silu.
        threshold: of the activation.
    """

    node: onnx.NodeProto
    layer: int
    weights: FfnFormat
    gated: bool
    activation: str
    threshold: float

    @property
    def module(self) -> str:
        """The PyTorch module that it replaces."""
        return str(self.node.name)


def read_graph(path: Path) -> onnx.ModelProto:
    """Return the graph without its external data.

    Raises:
        ProSparseError: it is missing or no ONNX file.
    """
    try:
        return onnx.load(str(path), load_external_data=False)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise no_model(path) from error
    except OSError as error:
        raise ProSparseError(
            f"model: {path}: cannot be read: {error.strerror}", hint="choose a file that you may read"
        ) from error
    except Exception as error:  # protobuf's DecodeError is in no stable place
        raise ProSparseError(
            f"model: {path}: expected an ONNX graph, got {' '.join(str(error).split())}", hint="export the model again"
        ) from error


def ffn_nodes(model: onnx.ModelProto) -> list[FfnNode]:
    """Return the graph's sparse feed-forward operators in order."""
    found: list[FfnNode] = []
    for node in model.graph.node:
        if node.domain != DOMAIN or not node.op_type.startswith(_FFN):
            continue
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        found.append(
            FfnNode(
                node,
                len(found),
                format_in(node.op_type),
                node.op_type.startswith("SparseGatedFFN"),
                attributes["activation"].decode(),
                float(attributes["threshold"]),
            )
        )
    return found


def initializer(model: onnx.ModelProto, folder: Path, name: str) -> NDArray[np.generic]:
    """Return one initializer's value.

    Raises:
        ProSparseError: the external data does not hold it.
        KeyError: there is no initializer of that name.
    """
    tensor = onnx.TensorProto()
    tensor.CopyFrom(next((t for t in model.graph.initializer if t.name == name), None) or _missing(name))
    if external_data_helper.uses_external_data(tensor):
        try:
            external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:  # onnx raises several kinds
            raise ProSparseError(
                f"model: {folder}: weights of {name} cannot be read: {' '.join(str(error).split())}",
                hint="the .onnx.data file is missing or cut off: export the model again",
            ) from error
    array: NDArray[np.generic] = numpy_helper.to_array(tensor)
    return array


def _missing(name: str) -> onnx.TensorProto:
    raise KeyError(name)


def add_output(model: onnx.ModelProto, name: str, elem_type: int = onnx.TensorProto.FLOAT) -> None:
    """Make a value of the graph an output too."""
    if all(output.name != name for output in model.graph.output):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, elem_type, None))


def edited_session(
    path: Path, edit: Callable[[onnx.ModelProto], None], *, library: bool, threads: int | None = None
) -> onnxruntime.InferenceSession:
    """Open the graph at ``path`` after ``edit``; its weights stay in the file where they are.

    Raises:
        ProSparseError: onnxruntime refuses the edited graph.
    """
    model = read_graph(path)
    edit(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    if library:
        register(options)
    providers = ["CPUExecutionProvider"]
    disabled = disabled_optimizers(path, read_manifest(path), library=library)
    data = model.SerializeToString()
    try:
        options.add_session_config_entry(_FOLDER, str(path.parent.resolve()))
        return onnxruntime.InferenceSession(data, options, providers=providers, disabled_optimizers=disabled)
    except Exception:  # an older onnxruntime: it finds the weights beside a file only
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".probe.onnx", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            return onnxruntime.InferenceSession(name, options, providers=providers, disabled_optimizers=disabled)
        except Exception as error:
            raise ProSparseError(
                f"model: {path}: onnxruntime {onnxruntime.__version__} cannot open it with more outputs: "
                + " ".join(str(error).split()),
                hint="export the model again",
            ) from error
        finally:
            os.unlink(name)


def unknown_to_the_library(model: onnx.ModelProto) -> list[str]:
    """Return the operators of the graph that the operator library does not have.

    onnxruntime says nothing of them: it runs their bodies, densely. So each is put, without its body, into a graph
    of its own, which opens only if the library knows it.
    """
    used = sorted({node.op_type for node in model.graph.node if node.domain == DOMAIN})
    return [op for op in used if not _opens(op)]


def _opens(op: str) -> bool:
    if op not in names():
        return False
    kinds = {"f32": 1, "f16": 10, "bf16": 16, "i8": 3, "i4": 2}
    shapes = {"s": (10, (QUANT_BLOCK, 1)), "b": (1, (QUANT_BLOCK,))}
    inputs = list(function_proto(op).input)
    initializers = []
    for name in inputs[1:]:
        weights = format_of(format_in(op), is_down=name == "w_down")
        matrix = (kinds[weights], (QUANT_BLOCK, QUANT_BLOCK // 2 if weights == "i4" else QUANT_BLOCK))
        kind, shape = shapes.get(name[0], matrix)
        raw = bytes(int(np.prod(shape)) * {1: 4, 10: 2, 16: 2, 3: 1, 2: 1}[kind])
        initializers.append(onnx.helper.make_tensor(name, kind, shape, raw, raw=True))
    attributes = {} if op.startswith("Linear") else {"activation": "relu", "threshold": 0.0}
    node = onnx.helper.make_node(op, inputs, ["y"], domain=DOMAIN, **attributes)
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [node], "probe", [value("x", 1, [1, QUANT_BLOCK])], [value("y", 1, None)], initializers
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid(DOMAIN, 1)]
    probe = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    register(options)
    try:
        onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base class
        if "not a registered" in str(error):
            return False
        raise
    return True


def first_feeds(session: onnxruntime.InferenceSession, ids: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
    """Return the inputs of a decoder for the tokens ``ids``, ``[tokens]``, as one row with an empty cache."""
    feeds: dict[str, NDArray[np.generic]] = {}
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
        elif value.name == "attention_mask":
            feeds[value.name] = np.ones((1, len(ids)), np.int64)
        else:
            feeds[value.name] = (ids if value.name == "input_ids" else np.arange(len(ids)))[None]
    return feeds
