"""The artifact's own graph with onnxruntime's dense operators, for onnxruntime-genai: same weights, MatMulNBits.

`i4` and `i8` matrices are MatMulNBits' own numbers (blocks of 32 along the input, float16 scales made float32), so
they are copied. down_proj is stored the other way round by us and is quantized anew along d_ff. Float weights become
plain products in float32, which is what onnxruntime's CPU kernels compute in.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from graph_passes import dequantize, format_of, is_quantized, quantize
from graph_passes.custom_ops import format_in
from prosparse_export.analysis.ffn_nodes import initializer, read_graph

_BLOCK = 32


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


def write_dense(source: Path, folder: Path) -> Path:
    """Write the dense twin of the artifact ``source`` into ``folder``, with genai_config.json; return its graph."""
    folder.mkdir(parents=True)
    model = read_graph(source)
    data = _Data(folder / "model.onnx.data")
    tensors: dict[str, TensorProto] = {}
    nodes: list[onnx.NodeProto] = []

    def read(name: str) -> np.ndarray:
        return np.asarray(initializer(model, source.parent, name))

    def product(x: str, name: str, weight: str, op: str, out: str, *, transposed: bool = False) -> None:
        """Add ``out = x @ weight.T``, or for down_proj, ``transposed``, ``x @ weight``."""
        stored = read(weight)
        weights = format_of(format_in(op), is_down=transposed)
        if not is_quantized(weights):
            wide = stored.astype(np.float32)
            tensors[f"{name}.dense"] = data.add(f"{name}.dense", wide if transposed else wide.T, TensorProto.FLOAT)
            nodes.append(helper.make_node("MatMul", [x, f"{name}.dense"], [out], name=name))
            return
        scales = read(f"{weight}_scale")
        if transposed:
            cols = stored.shape[1] * (2 if weights == "i4" else 1)
            stored, scales = quantize(np.ascontiguousarray(dequantize(stored, scales, cols).T), weights)
        rows, blocks = scales.shape
        packed = stored if weights == "i4" else (stored.astype(np.int16) + 128).astype(np.uint8)
        bits = 4 if weights == "i4" else 8
        tensors[f"{name}.q"] = data.add(f"{name}.q", packed.reshape(rows, blocks, -1), TensorProto.UINT8)
        flat = scales.astype(np.float32).reshape(-1)
        tensors[f"{name}.s"] = data.add(f"{name}.s", flat, TensorProto.FLOAT)
        attributes = {"K": blocks * _BLOCK, "N": rows, "bits": bits, "block_size": _BLOCK, "accuracy_level": 4}
        inputs = [x, f"{name}.q", f"{name}.s"]
        nodes.append(helper.make_node("MatMulNBits", inputs, [out], name=name, domain="com.microsoft", **attributes))

    for node in model.graph.node:
        if node.domain != "com.prosparse":
            nodes.append(node)
        elif node.op_type.startswith("Linear"):
            product(node.input[0], node.name, node.input[1], node.op_type, node.output[0])
        else:
            step = 3 if is_quantized(format_in(node.op_type)) else 2
            matrices = list(node.input[1::step])
            x, gated = node.input[0], len(matrices) == 3
            product(x, f"{node.name}.gate", matrices[0], node.op_type, f"{node.name}.z")
            nodes.append(helper.make_node("Relu", [f"{node.name}.z"], [f"{node.name}.h"]))
            hidden = f"{node.name}.h"
            if gated:
                product(x, f"{node.name}.up", matrices[1], node.op_type, f"{node.name}.u")
                nodes.append(helper.make_node("Mul", [hidden, f"{node.name}.u"], [f"{node.name}.g"]))
                hidden = f"{node.name}.g"
            product(hidden, f"{node.name}.down", matrices[-1], node.op_type, node.output[0], transposed=True)
    wanted = {name for node in nodes for name in node.input} - set(tensors)
    kept = []
    for tensor in model.graph.initializer:
        if tensor.name in wanted or tensor.name == "logits_to_keep":
            if tensor.external_data:
                kept.append(data.add(tensor.name, read(tensor.name), tensor.data_type))
            else:
                kept.append(tensor)
    data.close()
    for field in ("node", "initializer"):
        model.graph.ClearField(field)
    model.ClearField("functions")
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*kept, *tensors.values()])
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
        """Take the tokens of a prompt."""
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=capacity + 1, min_length=capacity + 1, do_sample=False)
        self._generator = self._og.Generator(self._model, parameters)
        self._generator.append_tokens(ids.astype(np.int32))
        self._generator.get_logits()

    def decode(self, ids: np.ndarray) -> None:
        """Generate as many tokens as ``ids`` has."""
        assert self._generator is not None
        for token in ids:
            self._generator.append_tokens(np.array([token], np.int32))
            self._generator.get_logits()
