"""Rename a causal LM's inputs, outputs and dimensions as runtimes expect them."""

from __future__ import annotations

import re

import onnx_ir as ir

from graph_passes.patterns.layer_copies import CACHE_NAME

__all__ = ["NameInterfacePass"]

_TOTAL = "past_sequence_length + sequence_length"


class NameInterfacePass(ir.passes.InPlacePass):
    """Rename what transformers' OnnxExporter calls ``input.cache.layers.0.keys`` and ``s44``.

    Inputs become input_ids, attention_mask, position_ids, past_key_values.N.key/value; outputs logits,
    present.N.key/value; dimensions batch_size, sequence_length, past_sequence_length. optimum, onnxruntime-genai and
    Transformers.js look for these names.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite ``model``."""
        graph = model.graph
        symbols = _symbols(graph)
        modified = False
        for values, prefix in ((graph.inputs, "past_key_values"), (graph.outputs, "present")):
            for value in values:
                if match := CACHE_NAME.match(value.name or ""):
                    value.name = f"{prefix}.{match[2]}.{match[3].removesuffix('s')}"
                    modified = True
        has_cache = any((value.name or "").startswith("past_key_values.") for value in graph.inputs)
        for value in graph.inputs:
            if value.name == "attention_mask" and value.shape is not None and value.shape.rank() == 2:
                wanted = ir.Shape(["batch_size", _TOTAL if has_cache else "sequence_length"])
                modified |= value.shape != wanted
                value.shape = wanted
        for value in _values(graph):
            if value.shape is not None:
                renamed = ir.Shape([_renamed(dim, symbols) for dim in value.shape])
                if renamed != value.shape:
                    value.shape, modified = renamed, True
        return ir.passes.PassResult(model, modified=modified)


def _symbols(graph: ir.Graph) -> dict[str, str]:
    """Map the exporter's symbols to names, from the shapes of input_ids and of one cache input."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        if value.shape is None:
            continue
        wanted: tuple[str | None, ...] = ()
        if value.name == "input_ids":
            wanted = ("batch_size", "sequence_length")
        elif CACHE_NAME.match(value.name or ""):
            wanted = ("batch_size", None, "past_sequence_length", None)
        for dim, name in zip(value.shape, wanted, strict=False):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None and name is not None:
                names.setdefault(dim.value, name)
    return names


def _renamed(dim: int | ir.SymbolicDim, symbols: dict[str, str]) -> int | str | None:
    if isinstance(dim, int) or dim.value is None:
        return dim if isinstance(dim, int) else None
    if dim.value.isdigit():  # the exporter writes some fixed dimensions as text
        return int(dim.value)
    return re.sub(r"[A-Za-z_]\w*", lambda m: symbols.get(m[0], m[0]), dim.value)


def _values(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *(output for node in graph for output in node.outputs)]
