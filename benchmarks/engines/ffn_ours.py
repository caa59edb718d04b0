"""Our sparse operators and Linear, by themselves."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from engines.ffn_graphs import WORKING_SET, Array, Run, Shape, ort_run, random_weights, summed
from graph_passes import FORMAT_SPECS, FfnFormat, Format, custom_ops, dequantize, format_of, is_quantized
from prosparse_export.analysis.roofline import bits_per_weight

__all__ = ["FfnLayers", "own_linear"]


class FfnLayers:
    """FFN layers of one shape in one of our formats, in a folder; the bias of the gate sets the sparsity."""

    def __init__(
        self,
        shape: Shape,
        weights: FfnFormat,
        x: NDArray[np.float32],
        folder: Path,
        *,
        working_set: int = WORKING_SET,
        level: custom_ops.AccuracyLevel = 0,
    ) -> None:
        self.shape, self.weights, self.x, self.folder, self.level = shape, weights, x, folder, level
        self.count = max(1, -(-working_set // int(shape.cost(weights).dense_bytes)))
        self.names = ["gate", "up", "down"] if shape.gated else ["up", "down"]
        rng = np.random.default_rng(0)
        self._tensors: list[onnx.TensorProto] = []
        self._z: list[NDArray[np.float32]] = []
        with (folder / f"{shape.name}-{weights}.data").open("wb") as data:
            for layer in range(self.count):
                for name in self.names:
                    own = format_of(weights, is_down=name == "down")
                    stored, scales = random_weights(own, shape.d_ff, shape.d_model, rng)
                    self._add(data, f"w_{name}_{layer}", stored, FORMAT_SPECS[own].onnx_type)
                    if scales is not None:
                        self._add(data, f"s_{name}_{layer}", scales, TensorProto.FLOAT16)
                    if name == self.names[0]:
                        wide = stored.astype(np.float32)
                        if scales is not None:
                            wide = dequantize(stored, scales, shape.d_model, own)
                        self._z.append(x[:8] @ wide.T)

    def _add(self, data, name: str, array: Array, kind: int) -> None:
        data.seek(-(-data.tell() // 4096) * 4096)
        tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
        for key, value in {"location": Path(data.name).name, "offset": data.tell(), "length": array.nbytes}.items():
            tensor.external_data.add(key=key, value=str(value))
        data.write(array.tobytes())
        self._tensors.append(tensor)

    def session(
        self, sparsity: float, threads: int, *, dense: bool = False, library: Path | None = None
    ) -> tuple[Run, float]:
        """Return a call of all layers with our operators, and the activation sparsity that the gates actually give.

        Args:
            sparsity: wanted, 0 to 1.
            threads: of the session.
            dense: compute every neuron.
            library: another build of the operator library.
        """
        shape, nodes, tensors, measured = self.shape, [], list(self._tensors), []
        op = (custom_ops.sparse_gated_ffn if shape.gated else custom_ops.sparse_ffn)(self.weights, self.level)
        zeros = {name: np.zeros(shape.d_model if name == "down" else shape.d_ff, np.float32) for name in self.names}
        for layer in range(self.count):
            z = self._z[layer]
            bias = np.float32(-np.quantile(z, sparsity) if sparsity > 0 else 1 - z.min())
            measured.append(float((z + bias <= 0).mean()))
            inputs = ["x"]
            for name in self.names:
                inputs.append(f"w_{name}_{layer}")
                if is_quantized(self.weights):
                    inputs.append(f"s_{name}_{layer}")
                inputs.append(f"b_{name}_{layer}")
                value = zeros[name] + (bias if name == self.names[0] else np.float32(0))
                tensors.append(onnx.numpy_helper.from_array(value, inputs[-1]))
            attributes = {"activation": "relu", "threshold": 0.0, "domain": custom_ops.DOMAIN}
            nodes.append(helper.make_node(op, inputs, [f"y_{layer}"], **attributes))
        path = self.folder / f"{shape.name}-{self.weights}.onnx"
        path.write_bytes(summed(nodes, tensors, self.count, shape.d_model).SerializeToString())
        variables = {"PROSPARSE_DENSE": "1" if dense else "0"}
        if library is not None:
            variables["PROSPARSE_OPS_LIBRARY"] = str(library)
        with mock.patch.dict(os.environ, variables):  # read when the session is created
            return ort_run(path, self.x, threads, ours=True), float(np.mean(measured))


def own_linear(d_in: int, d_out: int, weights: Format, x: NDArray[np.float32], threads: int) -> tuple[Run, int]:
    """Our Linear alone."""
    rng = np.random.default_rng(0)
    count = max(1, -(-WORKING_SET * 8 // int(d_in * d_out * bits_per_weight(weights))))
    nodes, tensors = [], [onnx.numpy_helper.from_array(np.zeros(d_out, np.float32), "b")]
    for i in range(count):
        stored, scales = random_weights(weights, d_out, d_in, rng)
        arrays = {f"w_{i}": stored, **({f"s_{i}": scales} if scales is not None else {})}
        tensors += [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()]
        nodes.append(
            helper.make_node(custom_ops.linear(weights), ["x", *arrays, "b"], [f"y_{i}"], domain=custom_ops.DOMAIN)
        )
    return ort_run(summed(nodes, tensors, count, d_out, d_in).SerializeToString(), x, threads, ours=True), count
