"""Activation sparsity, dead and always-on neurons, perplexity: against a count by hand."""

from __future__ import annotations

import math

import pytest
import torch
from support.training_models import LLAMA, build
from transformers import LlamaConfig

from prosparse_models import find_ffns, measure, substitute_activation
from prosparse_models.activation import set_drelu


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_measure_counts_what_a_hand_counts(batch: int) -> None:
    model = build(LlamaConfig(**LLAMA))
    ffns = find_ffns(model)
    substitute_activation(model, ffns, "relu")
    with torch.no_grad():  # layer 1: neuron 3 never, neurons 5 and 7 always on
        ffns[1].up.weight[3] = 0.0
        for neuron in (5, 7):
            ffns[1].gate.weight[neuron] = 0.0
    always = torch.zeros(32, dtype=torch.bool)
    always[[5, 7]] = True
    ffns[1].down.register_forward_pre_hook(lambda _, a: (torch.where(always, 1.0, a[0]),))
    rows = [torch.randint(3, 259, (9,), generator=torch.Generator().manual_seed(k)) for k in range(5)]

    seen: list[list[torch.Tensor]] = [[], []]
    for index, ffn in enumerate(ffns):
        ffn.down.register_forward_pre_hook(lambda _, a, index=index: seen[index].append(a[0][0]))
    nats = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=row[None]).logits[0].double()
            nats += [-torch.log_softmax(logits[t], -1)[row[t + 1]].item() for t in range(8)]
    counts = [(torch.cat(values) != 0).sum(0) for values in seen]  # per neuron, of 45 tokens

    found = measure(model, ffns, rows, batch=batch)
    assert found.tokens == 45
    assert found.d_ff == (32, 32)
    assert found.sparsity_by_layer == pytest.approx([1 - c.sum().item() / (45 * 32) for c in counts], abs=1e-12)
    assert found.sparsity == pytest.approx(sum(found.sparsity_by_layer) / 2, abs=1e-12)
    assert found.skipped_by_layer == found.sparsity_by_layer
    assert found.dead_by_layer == tuple(int((c == 0).sum()) for c in counts)
    assert found.always_on_by_layer == tuple(int((c == 45).sum()) for c in counts)
    assert found.dead_by_layer[1] >= 1
    assert found.always_on_by_layer[1] >= 2
    assert found.perplexity == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-5)


def test_drelu_counts_what_the_gate_skips_too() -> None:
    """down_proj's input has the zeros of both ReLUs; the operators skip what the gate leaves out, and no more."""
    model = build(LlamaConfig(**LLAMA))
    set_drelu(model)
    ffns = find_ffns(model)
    rows = [torch.randint(3, 259, (9,), generator=torch.Generator().manual_seed(k)) for k in range(5)]
    gates: list[list[torch.Tensor]] = [[], []]
    hidden: list[list[torch.Tensor]] = [[], []]
    for i, ffn in enumerate(ffns):
        assert ffn.gate is not None
        ffn.gate.register_forward_hook(lambda _, __, z, i=i: gates[i].append(z[0] > 0))
        ffn.down.register_forward_pre_hook(lambda _, a, i=i: hidden[i].append(a[0][0] == 0))
    with torch.no_grad():
        for row in rows:
            model(input_ids=row[None])
    skipped = [1 - torch.cat(g).double().mean().item() for g in gates]
    zeros = [torch.cat(h).double().mean().item() for h in hidden]
    found = measure(model, ffns, rows, batch=2)
    assert found.skipped_by_layer == pytest.approx(skipped, abs=1e-12)
    assert found.sparsity_by_layer == pytest.approx(zeros, abs=1e-12)
    assert all(s < z - 0.1 for s, z in zip(skipped, zeros, strict=True))
