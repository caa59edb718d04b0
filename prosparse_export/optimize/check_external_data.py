"""Check that the weights of a third-party ONNX file are present, complete and inside its folder."""

from __future__ import annotations

import os
from pathlib import Path

import onnx_ir as ir

from prosparse_export.errors import ProSparseError
from prosparse_export.optimize.check_graph import AGAIN, graphs_of

__all__ = ["check_weights"]

_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def check_weights(path: Path, model: ir.Model) -> None:
    """Check all initializers and constants of ``model``, which came from ``path``, without reading external data.

    The data file may be a symbolic link, as in the Hugging Face cache: its tensors then refer to the link's target.

    Raises:
        ProSparseError: data is missing, does not have the size of its shape, or lies outside the folder.
    """
    for graph in graphs_of(model):
        values = list(graph.initializers.values()) if isinstance(graph, ir.Graph) else []
        for value in values:
            if value.const_value is not None:
                value.const_value = _checked(path, value.name or "", value.const_value)
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                    what = f"{name} of node {node.name or node.op_type!r}"
                    tensor = attribute.as_tensor()
                    if (checked := _checked(path, what, tensor)) is not tensor:
                        node.attributes[name] = ir.AttrTensor(name, checked)


def _checked(path: Path, name: str, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if isinstance(tensor, ir.ExternalTensor):
        return _outside(path, name, tensor)
    if isinstance(tensor, ir.serde.TensorProtoTensor):
        _check_inside(path, name, tensor)
    return tensor


def _outside(path: Path, name: str, tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    location = os.path.normpath(os.fspath(tensor.location))
    if os.path.isabs(location) or location.split(os.sep)[0] == os.pardir:
        raise ProSparseError(
            f"model: {path}: {name}: expected external data in the folder of the .onnx file, got {location!r}",
            hint="copy the data file next to the .onnx file and save the model with that name",
        )
    file = path.parent / location
    if not file.is_file():
        raise ProSparseError(
            f"model: {path}: {name}: external data {file}: no such file",
            hint="copy the data file next to the .onnx file, under its original name",
        )
    offset, length = tensor.offset or 0, tensor.length if tensor.length is not None else tensor.nbytes
    if offset < 0 or length != tensor.nbytes:
        raise ProSparseError(
            f"model: {path}: {name}: external data in {file}: expected {tensor.nbytes} bytes by its shape, at "
            f"offset >= 0, got {length} at {offset}",
            hint=AGAIN,
        )
    if file.stat().st_size < offset + length:
        raise ProSparseError(
            f"model: {path}: {name}: expected {offset + length} bytes in {file}, got {file.stat().st_size}",
            hint="copy the data file again: the copy is probably truncated",
        )
    # onnx_ir rejects links out of base_dir. The name was checked above; a link is as trustworthy as a copy.
    return ir.ExternalTensor(
        os.path.realpath(file), offset, length, tensor.dtype, shape=tensor.shape, name=tensor.name, base_dir=""
    )


def _check_inside(path: Path, name: str, tensor: ir.serde.TensorProtoTensor) -> None:
    proto = tensor.raw
    where, shape = f"model: {path}: {name}", list(proto.dims)
    if proto.HasField("raw_data"):
        got = len(proto.raw_data)
        if got != tensor.nbytes:
            raise ProSparseError(f"{where}: expected {tensor.nbytes} bytes for shape {shape}, got {got}", hint=AGAIN)
        return
    numbers = sum(len(getattr(proto, field)) for field in _FIELDS)
    try:
        fits = (numbers > 0 or tensor.size == 0) and tensor.numpy().size == tensor.size
    except (ValueError, TypeError, AssertionError):
        fits = False
    if not fits:
        raise ProSparseError(f"{where}: expected {tensor.size} values for shape {shape}, got {numbers}", hint=AGAIN)
