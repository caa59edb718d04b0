"""Open sessions of edited copies of an artifact's graph; its weights stay in their file."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from prosparse_export.analysis.ffn_nodes import read_graph
from prosparse_export.artifact.manifest import read_manifest
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.cache import cache_inputs
from prosparse_export.runtime.operator_library import disabled_optimizers, register

__all__ = ["add_output", "edited_session", "first_feeds"]

_FOLDER = "session.model_external_initializers_file_folder_path"  # onnxruntime >= 1.21


def add_output(model: onnx.ModelProto, name: str, elem_type: int = onnx.TensorProto.FLOAT) -> None:
    """Add a value to the graph's outputs."""
    if all(output.name != name for output in model.graph.output):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, elem_type, None))


def edited_session(
    path: Path,
    edit: Callable[[onnx.ModelProto], None],
    *,
    library: bool,
    threads: int | None = None,
    has_bodies: bool = False,
) -> onnxruntime.InferenceSession:
    """Open a session of the graph at ``path`` after ``edit``; the weights stay in their file.

    Args:
        path: the artifact.
        edit: changes the graph in place.
        library: register the operator library.
        threads: intra-op threads; None for onnxruntime's default.
        has_bodies: the edit adds function bodies that dequantize weights, so onnxruntime must not fold large ones.

    Raises:
        ProSparseError: onnxruntime cannot open the edited graph.
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
    disabled = disabled_optimizers(path, read_manifest(path), library=library and not has_bodies)
    data = model.SerializeToString()
    try:
        options.add_session_config_entry(_FOLDER, str(path.parent.resolve()))
        return onnxruntime.InferenceSession(data, options, providers=providers, disabled_optimizers=disabled)
    except Exception:  # before onnxruntime 1.21 weights are found only next to a file
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".probe.onnx", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            return onnxruntime.InferenceSession(name, options, providers=providers, disabled_optimizers=disabled)
        except Exception as error:
            raise ProSparseError(
                f"model: {path}: onnxruntime {onnxruntime.__version__} cannot open it with added outputs: "
                + " ".join(str(error).split()),
                hint="export the model again",
            ) from error
        finally:
            os.unlink(name)


def first_feeds(session: onnxruntime.InferenceSession, ids: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
    """Return a decoder's inputs for the tokens ``ids``, ``[tokens]``, as one row with an empty cache."""
    feeds: dict[str, NDArray[np.generic]] = {}
    cache = cache_inputs(session)
    for value in session.get_inputs():
        if value.name in cache:
            feeds[value.name] = cache[value.name].array(1, 0)
        elif value.name == "attention_mask":
            feeds[value.name] = np.ones((1, len(ids)), np.int64)
        else:
            feeds[value.name] = (ids if value.name == "input_ids" else np.arange(len(ids)))[None]
    return feeds
