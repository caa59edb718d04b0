"""Initializers of a traced graph as tensors of a layer."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import torch
from support.model_sizes import grouped
from transformers import LlamaConfig, LlamaForCausalLM

from graph_passes import CannotStampError
from prosparse_export.export.layer_tensors import LayerTensors
from prosparse_models import FatReLU, LayerPlan, plan_layers

PATH = "model.layers"


def llama() -> tuple[LlamaForCausalLM, LayerTensors, LayerPlan]:
    model = LlamaForCausalLM(LlamaConfig(**{**grouped(hidden_act="relu"), "num_hidden_layers": 4})).eval()
    for number, layer in enumerate(model.model.layers):
        layer.mlp.act_fn = FatReLU(0.01 * (1 + number))
    plan = plan_layers(model)
    assert isinstance(plan, LayerPlan)
    return model, LayerTensors(model, plan), plan


def graph(**tensors: np.ndarray | np.float32) -> ir.Graph:
    values = [
        ir.Value(name=name, const_value=ir.tensor(np.asarray(array), name=name)) for name, array in tensors.items()
    ]
    return ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 20})


def marks(plan: LayerPlan) -> dict[str, np.float32]:
    return {f"mark_{layer}": np.float32(mark) for (layer, _), mark in plan.marks.items()}


@torch.no_grad()
def test_transposed_weights_and_thresholds_of_any_layer() -> None:
    model, tensors, plan = llama()
    weight = model.model.layers[3].mlp.up_proj.weight.numpy()
    traced = graph(val_7=weight.T, other=weight.copy(), **marks(plan))
    found = {value.name: tensor for value, tensor in tensors.owned(traced).items()}
    assert set(found) == {"val_7", "mark_0", "mark_3"}
    assert found["val_7"].layer == 3
    second = model.model.layers[1].mlp.up_proj.weight.numpy()
    np.testing.assert_array_equal(tensors.read(1, found["val_7"].key).numpy(), second.T)
    assert tensors.read(2, found["mark_0"].key).numpy() == np.float32(0.03)
    assert not tensors.owns(ir.tensor(weight.copy()))


@torch.no_grad()
def test_what_was_computed_from_a_parameter() -> None:
    model, tensors, plan = llama()
    weight = model.model.layers[0].mlp.up_proj.weight.numpy()
    with pytest.raises(CannotStampError, match=r"half is a part of mlp.up_proj.weight of layer 0"):
        tensors.owned(graph(half=weight[:8], **marks(plan)))
    name = f"{PATH}.0.mlp.up_proj.weight"
    with pytest.raises(CannotStampError, match="is a copy of the parameter"):
        tensors.owned(graph(**{name: weight.copy()}, **marks(plan)))
    with pytest.raises(CannotStampError, match="the thresholds of 2 FFNs are not constants"):
        tensors.owned(graph(w=weight))
