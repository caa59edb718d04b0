"""Trace a PyTorch model to an ONNX graph with transformers' exporter: one copy of each kind of layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
import transformers
from torch.overrides import TorchFunctionMode
from transformers import DynamicCache, PreTrainedModel
from transformers.exporters import OnnxConfig, OnnxExporter

from graph_passes import CannotStampError, StampLayersPass
from graph_passes.patterns.layer_copies import CACHE_NAME
from graph_passes.simplify_trace import merge_equal, simplify_trace
from prosparse_export.collection import collection_paused
from prosparse_export.errors import ProSparseError
from prosparse_export.export.layer_tensors import LayerTensors
from prosparse_export.export.tracing import tracing
from prosparse_models import LayerPlan, cache_argument, cache_of, few_layers, plan_layers

__all__ = ["OPSET", "Trace", "trace", "trace_and_complete"]

OPSET = 20
"""ai.onnx opset of artifacts: the newest that onnxscript 0.7 converts to; onnxruntime 1.18 supports opset 21."""

# Example sizes: all different, and not 0 or 1, which torch.export specializes.
_BATCH, _SEQUENCE, _PAST = 2, 3, 4


@dataclass(frozen=True)
class Trace:
    """A traced model.

    Attributes:
        graph: the graph of the complete model.
        layers: how many of its layers were traced, of how many, the others being copies; None if all were.
        reason: why all layers were traced, if so.
    """

    graph: ir.Model
    layers: tuple[int, int] | None
    reason: str = ""

    @property
    def summary(self) -> str:
        """One line about what was traced."""
        if self.layers is None:
            return f"traced all layers: {self.reason}"
        return f"traced {self.layers[0]} of {self.layers[1]} layers; the others are copies of these"


@torch.no_grad()
def trace(model: PreTrainedModel, *, whole: bool = False) -> Trace:
    """Return the graph of ``model`` with a KV cache and dynamic batch size, sequence length and past length.

    A model without lm_head becomes a graph from input_ids and attention_mask to hidden states, without a KV cache. The
    exporter's own fusions are disabled: its GroupQueryAttention requires batch size 1, and its packed projections hide
    the FFN (docs/architecture.md).

    Args:
        model: the model; its matrices may be placeholders.
        whole: trace all layers, although some are copies of others.

    Raises:
        ProSparseError: the exporter cannot convert the model.
    """
    plan = "requested" if whole else plan_layers(model)
    with collection_paused():
        if isinstance(plan, LayerPlan):
            try:
                return Trace(trace_and_complete(model, plan), (len(plan.traced), plan.count))
            except (CannotStampError, ProSparseError) as error:
                plan = str(error)
        graph = _export(model)
        simplify_trace(graph)
        merge_equal(graph)
        return Trace(graph, None, plan)


@torch.no_grad()
def trace_and_complete(model: PreTrainedModel, plan: LayerPlan) -> ir.Model:
    """Return the graph of ``model``, of which only the plan's layers are traced.

    Raises:
        CannotStampError: the other layers cannot be completed by copies.
        ProSparseError: the exporter cannot convert the model.
    """
    tensors = LayerTensors(model, plan)
    unfolded: list[ir.Node] = []

    def keep(node: ir.Node) -> bool:
        """Return whether ``node`` computes something else than a transpose from a layer's parameter."""
        computes = node.op_type != "Transpose" and any(
            tensors.owns(value.const_value) for value in node.inputs if value is not None
        )
        if computes:
            unfolded.append(node)
        return computes

    with few_layers(model, plan):
        graph = _export(model)
    simplify_trace(graph, keep)
    owned = tensors.owned(graph.graph)
    StampLayersPass(plan.path, plan.traced, plan.first, plan.template, owned, tensors.read)(graph)
    if unfolded:
        simplify_trace(graph)
    merge_equal(graph)
    return graph


def _export(model: PreTrainedModel) -> ir.Model:
    """Return the graph as the exporter translates it, not optimized."""
    try:
        with tracing():
            inputs = _inputs(model) if model.get_output_embeddings() is not None else _bare_inputs(model)
            config = OnnxConfig(dynamic=True, opset_version=OPSET, optimize=False)
            exported = OnnxExporter().export(model, inputs, config)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ProSparseError(
            f"export: {type(model).__name__}: transformers' ONNX exporter failed: {type(error).__name__}: {reason}",
            hint="check that this architecture is a decoder or an encoder that torch.export can trace",
        ) from error
    program = getattr(exported, "program", exported)  # transformers 5.20 returns torch's ONNXProgram itself
    graph: ir.Model = program if isinstance(program, ir.Model) else program.model
    if model.get_output_embeddings() is not None:
        _check_cache_names(graph)
    return graph


def _check_cache_names(graph: ir.Model) -> None:
    """Raise if the exporter's names of the KV cache are not those that graph passes know."""
    names = {
        side: [str(value.name) for value in values]
        for side, values in (("inputs", graph.graph.inputs), ("outputs", graph.graph.outputs))
    }
    known = {side: sum(CACHE_NAME.match(name) is not None for name in those) for side, those in names.items()}
    if known["inputs"] != 0 and known["inputs"] == known["outputs"]:
        return
    side = min(known, key=lambda each: known[each])
    raise ProSparseError(
        f"export: {side} of the graph by transformers {transformers.__version__}: expected names like "
        f"cache.layers.0.keys for the KV cache, {known['inputs']} and {known['outputs']} of inputs and outputs have "
        f"them, got {', '.join(names[side][:6])}",
        hint="install the tested versions: pip install -c constraints.txt .",
    )


class _NoLinear(TorchFunctionMode):
    """Linear layers return zeros at once: with placeholders of a large model they would take seconds."""

    def __torch_function__(
        self, func: Callable[..., Any], _: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.linear:
            x, weight = args[:2]
            return x.new_zeros(*x.shape[:-1], weight.shape[0])
        return func(*args, **(kwargs or {}))


def _inputs(model: PreTrainedModel) -> dict[str, object]:
    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.arange(_BATCH * (_PAST + _SEQUENCE)).reshape(_BATCH, -1) % vocabulary
    mask = torch.ones(_BATCH, _PAST + _SEQUENCE, dtype=torch.long)
    mask[0, 0] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with _NoLinear():  # only the cache's shapes matter
        output = model(
            input_ids=ids[:, :_PAST],
            attention_mask=mask[:, :_PAST],
            position_ids=positions[:, :_PAST],
            **cache_argument(model, DynamicCache()),  # full length, even where a sliding window attends to part of it
            use_cache=True,
        )
    return {
        "input_ids": ids[:, _PAST:],
        "attention_mask": mask,
        "position_ids": positions[:, _PAST:],
        **cache_argument(model, cache_of(output)),
    }


def _bare_inputs(model: PreTrainedModel) -> dict[str, object]:
    model.config.use_cache = False
    ids = torch.arange(_BATCH * _SEQUENCE).reshape(_BATCH, -1) % int(model.config.get_text_config().vocab_size)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return {"input_ids": ids, "attention_mask": mask}
