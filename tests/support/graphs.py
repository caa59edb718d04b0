"""Graphs of a few nodes from ONNX text, and ways to look at them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

D_MODEL, D_FF = 8, 24


def ffn_graph(
    nodes: str,
    *,
    gated: bool = True,
    bias: bool = False,
    gemm: bool = False,
    seed: int = 0,
    scope: str = "",
    outputs: tuple[str, ...] = ("y",),
) -> ir.Model:
    """``z`` (and, gated, ``u``) are linear in ``x``; ``nodes`` make ``h`` of them; ``y`` is linear in ``h``.

    ``nodes`` is ONNX text of node assignments; it may use the constants zero, two, t (0.25).
    """
    rng = np.random.default_rng(seed)
    constants = {
        "zero": np.float32(0.0),
        "two": np.float32(2.0),
        "t": np.float32(0.25),
        "w_gate": rng.standard_normal((D_MODEL, D_FF)).astype(np.float32),
        "w_up": rng.standard_normal((D_MODEL, D_FF)).astype(np.float32),
        "w_down": rng.standard_normal((D_FF, D_MODEL)).astype(np.float32),
        "b_gate": rng.standard_normal(D_FF).astype(np.float32),
        "b_up": rng.standard_normal(D_FF).astype(np.float32),
        "b_down": rng.standard_normal(D_MODEL).astype(np.float32),
    }

    def linear(x: str, name: str, y: str) -> str:
        if gemm:
            return f"{y} = Gemm ({x}, w_{name}, b_{name})" if bias else f"{y} = Gemm ({x}, w_{name})"
        if bias:
            return f"{y}_linear = MatMul ({x}, w_{name})\n{y} = Add ({y}_linear, b_{name})"
        return f"{y} = MatMul ({x}, w_{name})"

    first = [linear("x", "gate", "z"), linear("x", "up", "u")] if gated else [linear("x", "up", "z")]
    text = "\n".join([*first, nodes, linear("h", "down", "y")])
    rank = "n" if gemm else "b, s"
    declared = ", ".join(f"float {name}" if name != "y" else f"float[{rank}, {D_MODEL}] y" for name in outputs)
    body = f'<ir_version: 9, opset_import: ["" : 20]> g (float[{rank}, {D_MODEL}] x) => ({declared}) {{\n{text}\n}}'
    proto = onnx.parser.parse_model(body)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    if scope:
        for node in proto.graph.node:
            role = {"z": "gate_proj", "u": "up_proj", "y": "down_proj"}.get(node.output[0], "act_fn")
            value = f"['', '{scope}', '{scope}.{role}', 'fx']"
            node.metadata_props.append(onnx.StringStringEntryProto(key="pkg.torch.onnx.name_scopes", value=value))
    proto = onnx.shape_inference.infer_shapes(proto)
    return ir.from_proto(proto)


def graph_of(
    nodes: str, inputs: str, outputs: str, *, opset: int = 20, imports: str = "", **initializers: object
) -> ir.Model:
    """The graph of the ONNX text ``nodes``, with inferred shapes.

    Args:
        nodes: node assignments.
        inputs: typed values, as in ONNX text.
        outputs: likewise.
        opset: of ai.onnx.
        imports: other domains: ``', "com.microsoft" : 1'``.
        initializers: values by name.
    """
    head = f'<ir_version: 9, opset_import: ["" : {opset}{imports}]>'
    proto = onnx.parser.parse_model(f"{head}\ng ({inputs}) => ({outputs}) {{\n{nodes}\n}}")
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in initializers.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def ops(model: ir.Model) -> list[str]:
    """The operators of the graph in order, without constants."""
    return [node.op_type for node in model.graph if node.op_type != "Constant"]


def set_module(model: ir.Model, **modules: str) -> ir.Model:
    """Record module paths by the name of a node's output, as torch.onnx does."""
    for node in model.graph:
        if node.outputs[0].name in modules:
            node.metadata_props["pkg.torch.onnx.name_scopes"] = repr(["", modules[node.outputs[0].name], "linear"])
    return model


def evaluate(model: ir.Model, **feeds: np.ndarray) -> list[np.ndarray]:
    """Run ``model`` with stock onnxruntime, which inlines function bodies.

    The ONNX reference implementation cannot: its Equal rejects strings of different lengths.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    proto = ir.to_proto(model)
    return onnxruntime.InferenceSession(proto.SerializeToString(), options).run(None, feeds)


def weights_model(op: str, inputs: dict[str, np.ndarray], rank: int, **attributes: object) -> onnx.ModelProto:
    """A model of one com.prosparse node, its weights initializers, and its function body."""
    from graph_passes import custom_ops, function_bodies

    names = list(inputs)
    node = helper.make_node(op, ["x", *names], ["y"], domain=custom_ops.DOMAIN, name="ffn", **attributes)
    d_in = inputs["b_down"].shape[0] if "b_down" in inputs else None
    d_out = inputs["b_down"].shape[0] if "b_down" in inputs else inputs["b"].shape[0]
    shape = [None] * (rank - 1)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*shape, d_in])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*shape, d_out])],
        [numpy_helper.from_array(value, name) for name, value in inputs.items()],
    )
    imports = [helper.make_opsetid("", custom_ops.OPSET), helper.make_opsetid(custom_ops.DOMAIN, custom_ops.VERSION)]
    activation = "silu" if attributes.get("activation") == "silu" else ""
    functions = [function_bodies.function_proto(op, activation=activation)] if op in custom_ops.names() else []
    return helper.make_model(graph, opset_imports=imports, functions=functions, ir_version=9)
