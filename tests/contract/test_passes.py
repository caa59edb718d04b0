"""Properties of every pass in the pipeline, on the graph of a whole model. New passes are covered automatically."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from graph_passes import WeightPlan, export_pipeline
from prosparse_export.export.trace import trace

PASSES = [pytest.param(i, id=type(p).__name__) for i, p in enumerate(export_pipeline([]).passes)]
HEADS, KV_HEADS, DIM, LAYERS, VOCAB = 4, 2, 16, 2, 96


@pytest.fixture(scope="module")
def traced() -> ir.Model:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=HEADS * DIM,
        intermediate_size=80,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        hidden_act="relu",
        max_position_embeddings=64,
    )
    return trace(LlamaForCausalLM(config).eval()).graph


def pipeline() -> ir.passes.Sequential:
    """Every pass with something to do."""
    return export_pipeline([], plan=WeightPlan("f32", "f16"), positions=64)


def before_pass(traced: ir.Model, index: int) -> ir.Model:
    model = traced.clone()
    for pass_ in list(pipeline().passes)[:index]:
        model = pass_(model).model
    return model


def feeds(model: ir.Model, batch: int, sequence: int, past: int, pads: list[int]) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(0)
    mask = np.ones((batch, past + sequence), np.int64)
    for row, pad in enumerate(pads):
        mask[row, :pad] = 0
    positions = np.maximum(mask.cumsum(-1) - 1, 0)[:, past:]
    values: list[NDArray[np.generic]] = [rng.integers(0, VOCAB, (batch, sequence)), mask, positions]
    values += [rng.standard_normal((batch, KV_HEADS, past, DIM)).astype(np.float32) for _ in range(2 * LAYERS)]
    return {i.name or "": v for i, v in zip(model.graph.inputs, values, strict=True)}


def asked(model: ir.Model) -> list[str]:
    """Inputs that must be given: those without a default."""
    return [i.name or "" for i in model.graph.inputs if i.name not in model.graph.initializers]


def run(model: ir.Model, values: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options).run(None, values)[0]


@pytest.mark.parametrize("index", PASSES)
def test_reports_modified_truthfully_and_is_idempotent(traced: ir.Model, index: int) -> None:
    model = before_pass(traced, index)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    result = list(pipeline().passes)[index](model)
    after = ir.to_proto(result.model).SerializeToString(deterministic=True)
    if type(list(pipeline().passes)[index]).__module__.startswith("graph_passes"):
        assert result.modified == (before != after)  # ours; onnx_ir's own count some other things too
        assert result.modified
        assert not list(pipeline().passes)[index](result.model).modified


# (batch, sequence, past, pads): prefill, left-padded prefill, decode, continued prefill of one row
SHAPES = [(1, 5, 0, [0]), (3, 7, 0, [0, 2, 5]), (3, 1, 0, [0, 0, 0]), (3, 1, 6, [0, 0, 0]), (1, 4, 6, [0])]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pipeline_keeps_the_logits(traced: ir.Model, shape: tuple[int, int, int, list[int]]) -> None:
    batch, sequence, past, pads = shape
    values = feeds(traced, batch, sequence, past, pads)
    expected = run(traced, values)
    for fuse, positions in ((True, 64), (True, None), (False, 64)):
        not_fused: list[str] = []
        model = export_pipeline([], not_fused, fuse_attention=fuse, positions=positions)(traced.clone()).model
        assert not_fused == []
        kinds = Counter(node.op_type for node in model.graph)
        assert ("GroupQueryAttention" in kinds, "Softmax" in kinds) == (fuse, not fuse)
        assert "SkipSimplifiedLayerNormalization" in kinds or not fuse
        assert kinds["RotaryEmbedding"] == (2 * LAYERS if fuse and positions is None else 0)
        matmuls = 1 + LAYERS * (2 if fuse and positions else 4)  # lm_head; q, k, v and o, or packed ones and o
        assert kinds["MatMul"] == matmuls + (0 if fuse else 2 * LAYERS)  # scores and values
        actual = run(model, dict(zip(asked(model), values.values(), strict=True)))
        real = values["attention_mask"][:, past:] == 1
        # Two layers of sums of at most 80 terms, in another order; logits are of order 1.
        error = np.abs(actual - expected)[real].max()
        assert error <= 200 * 2.0**-24 * max(1.0, np.abs(expected).max()) * LAYERS
        assert np.isfinite(actual).all()


def test_interface_has_the_ecosystems_names(traced: ir.Model) -> None:
    graph = export_pipeline([])(traced.clone()).model.graph
    cache = [f"{i}.{part}" for i in range(LAYERS) for part in ("key", "value")]
    inputs = ["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{c}" for c in cache)]
    assert [v.name for v in graph.inputs] == [*inputs, "logits_to_keep"]
    np.testing.assert_array_equal(graph.initializers["logits_to_keep"].const_value.numpy(), [0])  # by default all
    assert [v.name for v in graph.outputs] == ["logits", *(f"present.{c}" for c in cache)]
    total = "past_sequence_length + sequence_length"
    assert [str(d) for d in graph.inputs[0].shape or ()] == ["batch_size", "sequence_length"]
    assert [str(d) for d in graph.inputs[1].shape or ()] == ["batch_size", total]
    assert [str(d) for d in graph.inputs[3].shape or ()] == ["batch_size", "2", "past_sequence_length", "16"]
    assert [str(d) for d in graph.outputs[1].shape or ()] == ["batch_size", "2", total, "16"]


def test_no_trace_of_this_machine_stays(traced: ir.Model) -> None:
    proto = ir.to_proto(export_pipeline([])(traced.clone()).model)
    assert b"site-packages" not in proto.SerializeToString()


def mask_with(traced: ir.Model, op_type: str) -> ir.Model:
    """The graph with one more comparison in its mask, as a sliding window has."""
    model = traced.clone()
    causal = next(node for node in model.graph if node.op_type == "LessOrEqual")
    window = ir.node(op_type, list(causal.inputs))
    both = ir.node("And", [causal.outputs[0], window.outputs[0]])
    causal.outputs[0].replace_all_uses_with(both.outputs[0])
    both.replace_input_with(0, causal.outputs[0])
    model.graph.insert_after(causal, [window, both])
    return model


def test_does_not_fuse_a_mask_that_is_more_than_causal(traced: ir.Model) -> None:
    not_fused: list[str] = []
    model = export_pipeline([], not_fused)(mask_with(traced, "Greater")).model
    assert len(not_fused) == LAYERS
    assert not_fused[0].endswith(
        "its mask is not limited to causality, padding and a sliding window: expected 1 comparison, got 2"
    )
    assert "GroupQueryAttention" not in {node.op_type for node in model.graph}
