"""Recognize linear layers: a MatMul with a constant matrix and an optional bias."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graph_passes.patterns.standard_nodes import producer
from graph_passes.weights.weight_source import Weight, is_parameter, nbits_weight, weight_behind

__all__ = [
    "SCOPES",
    "Linear",
    "constant_array",
    "find_linears",
    "is_parameter",
    "module_scope",
    "scalar_constant",
    "unscaled",
]

_SLICE = re.compile(r"\.slice\([^)]*\)")
SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True)
class Linear:
    """``output = x @ W + bias``.

    Attributes:
        x: input, ``[..., d_in]``.
        weight: the matrix; ``[d_in, d_out]`` if ``in_major``, else ``[d_out, d_in]``.
        in_major: whether ``weight`` is stored input-major.
        bias: initializer of length d_out, or None.
        output: ``[..., d_out]``.
        module: module path recorded by the exporter, such as ``model.layers.0.mlp.up_proj``, or "".
    """

    x: ir.Value
    weight: Weight
    in_major: bool
    bias: ir.Value | None
    output: ir.Value
    module: str

    @property
    def matmul(self) -> ir.Node:
        """The MatMul, Gemm or MatMulNBits node; the bias may be added by another node."""
        node = self.output.producer()
        assert node is not None
        if node.op_type == "Add":
            return next(p for value in node.inputs if value is not None and (p := value.producer()) is not None)
        return node

    @property
    def d_in(self) -> int:
        """Input features."""
        return self.weight.shape[0 if self.in_major else 1]

    @property
    def d_out(self) -> int:
        """Output features."""
        return self.weight.shape[1 if self.in_major else 0]


def find_linears(graph: ir.Graph | ir.Function) -> dict[ir.Value, Linear]:
    """Return the linear layers of ``graph`` by their output value.

    1. ``MatMul(x, W)`` with a constant ``W``; weight_source.py lists the accepted forms;
    2. case 1 and ``Add`` of a constant of length d_out, if nothing else reads the MatMul;
    3. ``Gemm(x, W, b)`` with alpha = beta = 1 and x not transposed;
    4. ``com.microsoft::MatMulNBits``, symmetric, 4 bits, block_size 32, with or without the ``Add`` of case 2.
    """
    found = {}
    for node in graph:
        linear = _from_matmul(node) or _from_gemm(node) or _from_nbits(node)
        if linear is not None:
            found[linear.output] = linear
    return found


def constant_array(value: ir.Value | None, most: int = 64) -> np.ndarray | None:
    """Return the contents of a small constant (initializer or Constant node) or None."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size > most or (value is not None and value.is_graph_input()):
        return None
    return tensor.numpy()


def scalar_constant(value: ir.Value | None) -> float | None:
    """Return the value of a one-element constant, or None."""
    array = constant_array(value, most=1)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def unscaled(value: ir.Value | None) -> tuple[ir.Value, float]:
    """Return x and c if ``value`` is x * c with a constant c, else ``value`` and 1."""
    assert value is not None
    node = producer(value, "Mul")
    if node is not None:
        for inner, factor in (node.inputs, node.inputs[::-1]):
            scale = scalar_constant(factor)
            if scale is not None and inner is not None:
                return inner, scale
    return value, 1.0


def module_scope(node: ir.Node) -> str:
    """Return the path of the PyTorch module that ``node`` was exported from, or ""."""
    raw = node.metadata_props.get(SCOPES)
    if not raw:
        return ""
    try:
        scopes = ast.literal_eval(raw)
    except (ValueError, SyntaxError):
        return ""
    path = str(scopes[-2]) if isinstance(scopes, list) and len(scopes) >= 2 else ""
    return _SLICE.sub("", path)  # some models loop over layers[:n], exported as layers.slice(None, n, None)


def _from_matmul(node: ir.Node) -> Linear | None:
    if node.op_type != "MatMul" or node.domain != "" or node.inputs[0] is None or is_parameter(node.inputs[0]):
        return None
    matrix = weight_behind(node.inputs[1])
    if isinstance(matrix, str):
        return None
    weight, transposed = matrix
    output, bias = _added_bias(node.outputs[0], weight.shape[0 if transposed else 1])
    return Linear(node.inputs[0], weight, not transposed, bias, output, module_scope(node))


def _from_gemm(node: ir.Node) -> Linear | None:
    if node.op_type != "Gemm" or node.domain != "" or node.inputs[0] is None or is_parameter(node.inputs[0]):
        return None
    attributes = node.attributes
    if attributes.get_int("transA", 0) or attributes.get_float("alpha", 1.0) != 1.0:
        return None
    matrix = weight_behind(node.inputs[1])
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if isinstance(matrix, str):
        return None
    weight, transposed = matrix
    in_major = transposed == bool(attributes.get_int("transB", 0))
    width = weight.shape[1 if in_major else 0]
    if bias is not None:
        if attributes.get_float("beta", 1.0) != 1.0 or not _is_bias(bias, width, most_rank=2):
            return None
        return Linear(node.inputs[0], weight, in_major, bias, node.outputs[0], module_scope(node))
    output, bias = _added_bias(node.outputs[0], width)
    return Linear(node.inputs[0], weight, in_major, bias, output, module_scope(node))


def _from_nbits(node: ir.Node) -> Linear | None:
    if node.op_type != "MatMulNBits" or node.domain != "com.microsoft" or not node.inputs or node.inputs[0] is None:
        return None
    weight = nbits_weight(node)
    if isinstance(weight, str):
        return None
    bias = node.inputs[5] if len(node.inputs) > 5 else None
    if bias is not None and not _is_bias(bias, weight.shape[0], most_rank=1):
        return None
    output = node.outputs[0]
    if bias is None:
        output, bias = _added_bias(output, weight.shape[0])
    return Linear(node.inputs[0], weight, False, bias, output, module_scope(node))


def _added_bias(output: ir.Value, width: int) -> tuple[ir.Value, ir.Value | None]:
    """Return the output and bias of the ``Add`` that follows a MatMul, or the MatMul's output and None."""
    uses = list(output.uses())
    if len(uses) == 1 and not output.is_graph_output():
        user = uses[0].node
        if user.op_type == "Add" and user.domain == "":
            other = user.inputs[1 - uses[0].idx]
            # A bias of higher rank than the MatMul's output would broadcast it. An unknown rank is taken as 2.
            rank = output.shape.rank() if output.shape is not None else 2
            if other is not None and _is_bias(other, width, most_rank=rank):
                return user.outputs[0], other
    return output, None


def _is_bias(value: ir.Value, width: int, most_rank: int) -> bool:
    if not is_parameter(value) or value.const_value is None:
        return False
    shape = tuple(value.const_value.shape.numpy())
    return len(shape) <= most_rank and shape[-1:] == (width,) and value.const_value.size == width
