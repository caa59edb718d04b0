"""The artifact's own graph with onnxruntime's dense operators, for onnxruntime-genai: same weights, MatMulNBits.

`i4` and `i8` matrices are MatMulNBits' own numbers (groups of 32 along the input, float16 scales made float32), so
they are copied. We store down_proj transposed; it is requantized along d_ff. Float weights become MatMul in
float32, the type that onnxruntime's CPU kernels compute in.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from graph_passes import FORMAT_SPECS, Format, dequantize, format_of, is_quantized, quantize
from graph_passes.custom_ops import ATTENTION, DOMAIN, applies_rope, cache_format, format_in
from prosparse_export.analysis.ffn_nodes import initializer, read_graph

_GROUP = 32


class _Data:
    """Tensors appended to one external data file."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._name = path.name

    def add(self, name: str, array: np.ndarray, kind: int) -> TensorProto:
        """Write ``array``; return its initializer."""
        self._stream.seek(-(-self._stream.tell() // 4096) * 4096)
        offset = self._stream.tell()
        self._stream.write(np.ascontiguousarray(array).data)
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", self._name), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        return tensor

    def close(self) -> None:
        """Finish the file."""
        self._stream.close()


class _DenseGraph:
    """Nodes and initializers of the dense graph, as they are made from the artifact's ``model``."""

    def __init__(self, model: onnx.ModelProto, source: Path, data: _Data, accuracy_level: int) -> None:
        self._model, self._folder, self._data = model, source.parent, data
        self._accuracy_level = accuracy_level
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}

    def read(self, name: str) -> np.ndarray:
        """Return an initializer of the artifact."""
        return np.asarray(initializer(self._model, self._folder, name))

    def matmul(self, x: str, name: str, weight: str, op: str, out: str, *, is_down: bool = False) -> None:
        """Add ``out = x @ weight.T``; for down_proj, which is stored transposed, ``x @ weight``."""
        stored = self.read(weight)
        weights = format_of(format_in(op), is_down=is_down)
        if not is_quantized(weights):
            wide = stored.astype(np.float32)
            self._add(f"{name}.dense", wide if is_down else wide.T, TensorProto.FLOAT)
            self.nodes.append(helper.make_node("MatMul", [x, f"{name}.dense"], [out], name=name))
            return
        scales = self.read(f"{weight}_scale")
        spec = FORMAT_SPECS[weights]
        narrow: Format = "i4" if spec.bits == 4 else weights  # MatMulNBits' levels are equally spaced
        if is_down or narrow != weights:
            wide = dequantize(stored, scales, spec.columns(stored.shape[1]), weights)
            stored, scales = quantize(np.ascontiguousarray(wide.T if is_down else wide), narrow)
        rows, groups = scales.shape
        packed = stored if spec.bits == 4 else (stored.astype(np.int16) + 128).astype(np.uint8)
        self._add(f"{name}.q", packed.reshape(rows, groups, -1), TensorProto.UINT8)
        self._add(f"{name}.s", scales.astype(np.float32).reshape(-1), TensorProto.FLOAT)
        attributes = {"K": groups * _GROUP, "N": rows, "bits": spec.bits, "block_size": _GROUP}
        attributes["accuracy_level"] = self._accuracy_level
        inputs = [x, f"{name}.q", f"{name}.s"]
        self.nodes.append(
            helper.make_node("MatMulNBits", inputs, [out], name=name, domain="com.microsoft", **attributes)
        )

    def ffn(self, node: onnx.NodeProto) -> None:
        """Add a sparse operator's FFN as dense nodes, with ReLU."""
        step = 3 if is_quantized(format_in(node.op_type)) else 2
        matrices = list(node.input[1::step])
        x, name, op = node.input[0], node.name, node.op_type
        self.matmul(x, f"{name}.gate", matrices[0], op, f"{name}.z")
        self.nodes.append(helper.make_node("Relu", [f"{name}.z"], [f"{name}.h"]))
        hidden = f"{name}.h"
        if len(matrices) == 3:
            self.matmul(x, f"{name}.up", matrices[1], op, f"{name}.u")
            self.nodes.append(helper.make_node("Mul", [hidden, f"{name}.u"], [f"{name}.g"]))
            hidden = f"{name}.g"
        self.matmul(hidden, f"{name}.down", matrices[-1], op, node.output[0], is_down=True)

    def attention(self, node: onnx.NodeProto) -> None:
        """Add onnxruntime's attention in place of ours over a float32 cache."""
        if cache_format(node.op_type) != "F32":
            raise ValueError(f"{node.name}: expected a float32 KV cache, got {node.op_type}")
        attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        qkv, *others = node.input
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [qkv, "", "", *others],
                node.output,
                name=node.name,
                domain="com.microsoft",
                do_rotary=int(applies_rope(node.op_type)),
                **attributes,
            )
        )

    def kept(self) -> list[TensorProto]:
        """Return the artifact's initializers that the dense nodes still read."""
        read = {name for node in self.nodes for name in node.input} | {"logits_to_keep"}
        return [
            self._data.add(tensor.name, self.read(tensor.name), tensor.data_type) if tensor.external_data else tensor
            for tensor in self._model.graph.initializer
            if tensor.name in read
        ]

    def _add(self, name: str, array: np.ndarray, kind: int) -> None:
        self.tensors[name] = self._data.add(name, array, kind)


def write_dense(source: Path, folder: Path, accuracy_level: int = 4) -> Path:
    """Write the artifact ``source`` with dense operators into ``folder``, with genai_config.json; return its graph.

    ``accuracy_level`` is MatMulNBits' own: at 4 it rounds activations to 8 bits.
    """
    folder.mkdir(parents=True)
    model = read_graph(source)
    data = _Data(folder / "model.onnx.data")
    dense = _DenseGraph(model, source, data, accuracy_level)
    for node in model.graph.node:
        if node.domain != DOMAIN:
            dense.nodes.append(node)
        elif node.op_type in ATTENTION:
            dense.attention(node)
        elif node.op_type.startswith("Linear"):
            dense.matmul(node.input[0], node.name, node.input[1], node.op_type, node.output[0])
        else:
            dense.ffn(node)
    kept = dense.kept()
    data.close()
    for field in ("node", "initializer"):
        model.graph.ClearField(field)
    model.ClearField("functions")
    model.graph.node.extend(dense.nodes)
    model.graph.initializer.extend([*kept, *dense.tensors.values()])
    onnx.save(model, folder / "model.onnx")
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "prosparse.json"):
        (folder / name).write_bytes((source.parent / name).read_bytes())
    genai = json.loads((source.parent / "genai_config.json").read_text())
    genai["model"]["decoder"]["filename"] = "model.onnx"
    genai["model"]["decoder"]["session_options"].pop("custom_ops_library", None)
    (folder / "genai_config.json").write_text(json.dumps(genai))
    return folder / "model.onnx"


class GenAi:
    """A folder in onnxruntime-genai, which cannot ask for the last position's logits alone in prefill."""

    def __init__(self, folder: Path, threads: int) -> None:
        import onnxruntime_genai as og

        self._og = og
        config = og.Config(str(folder))
        options = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        config.overlay(json.dumps(options))
        self._model = og.Model(config)
        self._generator = None

    def prefill(self, ids: np.ndarray, capacity: int) -> None:
        """Run a prompt with an empty KV cache."""
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=capacity + 1, min_length=capacity + 1, do_sample=False)
        self._generator = self._og.Generator(self._model, parameters)
        self._generator.append_tokens(ids.astype(np.int32))
        self._generator.get_logits()

    def decode(self, ids: np.ndarray) -> None:
        """Decode the tokens one by one."""
        assert self._generator is not None
        for token in ids:
            self._generator.append_tokens(np.array([token], np.int32))
            self._generator.get_logits()
