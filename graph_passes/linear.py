"""Recognise linear layers: a product with a constant matrix, and the bias that follows it."""

from __future__ import annotations

import ast
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

__all__ = ["Linear", "constant_array", "find_linears", "is_parameter", "module_scope", "scalar_constant"]

_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Linear:
    """``output = x @ W + bias``.

    Attributes:
        x: input, ``[..., d_in]``.
        weight: the initializer; ``[d_in, d_out]`` if ``in_major``, else ``[d_out, d_in]``.
        in_major: how ``weight`` is stored.
        bias: initializer ``[d_out]``, or None.
        output: ``[..., d_out]``.
        module: module path that the exporter recorded, such as ``model.layers.0.mlp.up_proj``, or "".
    """

    x: ir.Value
    weight: ir.Value
    in_major: bool
    bias: ir.Value | None
    output: ir.Value
    module: str

    @property
    def d_in(self) -> int:
        """Input features."""
        return _shape(self.weight)[0 if self.in_major else 1]

    @property
    def d_out(self) -> int:
        """Output features."""
        return _shape(self.weight)[1 if self.in_major else 0]


def find_linears(graph: ir.Graph) -> dict[ir.Value, Linear]:
    """Return the linear layers of ``graph`` by their output value.

    1. ``MatMul(x, W)`` with ``W`` an initializer, or ``Transpose`` of one;
    2. case 1 and ``Add`` with a 1-D initializer, if nothing else reads the product;
    3. ``Gemm(x, W, b)`` with alpha = beta = 1 and x not transposed.
    """
    found = {}
    for node in graph:
        linear = _from_matmul(node) or _from_gemm(node)
        if linear is not None:
            found[linear.output] = linear
    return found


def is_parameter(value: ir.Value | None) -> bool:
    """Tell whether ``value`` is an initializer with known contents that no caller can override."""
    return value is not None and value.is_initializer() and value.const_value is not None and not value.is_graph_input()


def constant_array(value: ir.Value | None, most: int = 64) -> np.ndarray | None:
    """Return the contents of a small constant (initializer or Constant node) or None."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size > most or (value is not None and value.is_graph_input()):
        return None
    return tensor.numpy()


def scalar_constant(value: ir.Value | None) -> float | None:
    """Return the number in a one-element constant, or None."""
    array = constant_array(value, most=1)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def module_scope(node: ir.Node) -> str:
    """Return the path of the PyTorch module that ``node`` came from, or ""."""
    raw = node.metadata_props.get(_SCOPES)
    if not raw:
        return ""
    try:
        scopes = ast.literal_eval(raw)
    except (ValueError, SyntaxError):
        return ""
    return str(scopes[-2]) if isinstance(scopes, list) and len(scopes) >= 2 else ""


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())


def _matrix(value: ir.Value | None) -> tuple[ir.Value, bool] | None:
    """Return the initializer behind ``value`` and whether it is stored transposed."""
    if value is None:
        return None
    transposed = False
    node = value.producer()
    if node is not None and node.op_type == "Transpose" and node.domain == "":
        perm = node.attributes.get_ints("perm", [1, 0])
        if list(perm) != [1, 0] or node.inputs[0] is None:
            return None
        value, transposed = node.inputs[0], True
    return (value, transposed) if is_parameter(value) and len(_shape(value)) == 2 else None


def _from_matmul(node: ir.Node) -> Linear | None:
    if node.op_type != "MatMul" or node.domain != "" or node.inputs[0] is None:
        return None
    matrix = _matrix(node.inputs[1])
    if matrix is None or is_parameter(node.inputs[0]):
        return None
    weight, transposed = matrix
    output, bias = node.outputs[0], None
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output():
        user = uses[0].node
        if user.op_type == "Add" and user.domain == "":
            other = user.inputs[1 - uses[0].idx]
            width = _shape(weight)[0 if transposed else 1]
            if other is not None and is_parameter(other) and _shape(other) == (width,):
                output, bias = user.outputs[0], other
    return Linear(node.inputs[0], weight, not transposed, bias, output, module_scope(node))


def _from_gemm(node: ir.Node) -> Linear | None:
    if node.op_type != "Gemm" or node.domain != "" or node.inputs[0] is None or is_parameter(node.inputs[0]):
        return None
    attributes = node.attributes
    if attributes.get_int("transA", 0) or attributes.get_float("alpha", 1.0) != 1.0:
        return None
    matrix = _matrix(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if matrix is None:
        return None
    weight, transposed = matrix
    in_major = transposed == bool(attributes.get_int("transB", 0))
    width = _shape(weight)[1 if in_major else 0]
    if bias is not None and not (
        attributes.get_float("beta", 1.0) == 1.0 and is_parameter(bias) and _shape(bias) == (width,)
    ):
        return None
    return Linear(node.inputs[0], weight, in_major, bias, node.outputs[0], module_scope(node))
