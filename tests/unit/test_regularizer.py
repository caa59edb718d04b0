"""The L1 term: its gradient against autograd on a dense formula, its weights, its memory."""

from __future__ import annotations

import pytest
import torch
from support.training_models import LLAMA, build
from torch import nn
from transformers import LlamaConfig

from prosparse_models import find_ffns, substitute_activation
from prosparse_models.training.regularizer import ActivationL1, l1_norm


def dense_l1(model: nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The formula by hand: sum over layers of the masked sum of |relu(gate) * up|, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    captured: list[torch.Tensor] = []
    handles = [layer.mlp.register_forward_pre_hook(lambda _, a: captured.append(a[0])) for layer in model.model.layers]
    model(input_ids=ids, attention_mask=mask)
    for handle in handles:
        handle.remove()
    for layer, x in zip(model.model.layers, captured, strict=True):
        gate = x @ layer.mlp.gate_proj.weight.T
        up = x @ layer.mlp.up_proj.weight.T
        x1 = torch.where(gate > 0, gate, torch.zeros_like(gate)) * up
        total = total + (x1.abs().sum(-1) * mask).sum()
    return total


@pytest.fixture
def model() -> nn.Module:
    model = build(LlamaConfig(**LLAMA)).double()
    for layer in model.model.layers:  # LLaMA's norm rounds to float32
        layer.input_layernorm = nn.RMSNorm(16, eps=1e-5).double()
        layer.post_attention_layernorm = nn.RMSNorm(16, eps=1e-5).double()
    model.model.norm = nn.RMSNorm(16, eps=1e-5).double()
    substitute_activation(model, find_ffns(model), "relu")
    return model


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_is_the_dense_formulas(model: nn.Module, checkpointing: bool) -> None:
    ids = torch.randint(3, 259, (3, 11), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[2, :9] = 0  # left padding
    coefficient = 3e-3 / mask.sum()

    def entropy(logits: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())

    data_loss = entropy(model(input_ids=ids, attention_mask=mask).logits)
    expected = gradients(model, data_loss + coefficient * dense_l1(model, ids, mask))
    without = gradients(model, entropy(model(input_ids=ids, attention_mask=mask).logits))
    regularizer = ActivationL1(find_ffns(model))
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with regularizer.collect(mask, count=True) as norms:
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    l1 = torch.stack(norms).sum()
    actual = gradients(model, entropy(logits) + coefficient * l1)
    assert l1.item() == pytest.approx(dense_l1(model, ids, mask).item(), rel=1e-12)
    for name, value in expected.items():
        scale = value.norm()
        assert (actual[name] - value).norm() <= 1e-10 * scale, name
        if "gate_proj" in name:  # the term matters: a wrong gradient would be seen
            assert (without[name] - value).norm() > 1e-3 * scale
    assert len(norms) == len(regularizer.active()) == 2


def test_padding_counts_nothing(model: nn.Module) -> None:
    regularizer = ActivationL1(find_ffns(model))
    ids = torch.arange(3, 11)[None]
    padded = torch.cat([torch.full((1, 5), 2), ids], dim=1)
    mask = (padded != 2).long()
    with torch.no_grad():
        with regularizer.collect(None, count=True) as alone:
            model(input_ids=ids, use_cache=False)
        alone_active = [int(a) for a in regularizer.active()]
        positions = (mask.cumsum(-1) - 1).clamp_min(0)
        with regularizer.collect(mask, count=True) as with_padding:
            model(input_ids=padded, attention_mask=mask, position_ids=positions, use_cache=False)
    torch.testing.assert_close(torch.stack(with_padding), torch.stack(alone), rtol=1e-12, atol=0)
    assert [int(a) for a in regularizer.active()] == alone_active


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_norm_is_summed_in_float32(dtype: torch.dtype) -> None:
    x1 = torch.full((4, 4096), 0.25, dtype=dtype)  # a sum of 4,096 in bfloat16 would stop at 64
    _, norm = l1_norm(x1)
    assert norm.dtype == torch.float32
    assert norm.item() == 4096.0


def test_keeps_no_copy() -> None:
    """What autograd keeps with the term: x1's storage, once, besides scalars and per-token weights."""
    saved: list[torch.Tensor] = []
    layer = nn.Linear(64, 8, bias=False)
    x1 = torch.relu(torch.randn(2, 5, 64)).requires_grad_()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        passed, norm = l1_norm(x1, torch.ones(2, 5))
        layer(passed).sum()
    large = [t for t in saved if t.numel() >= x1.numel()]
    assert len(large) >= 2  # ours and the linear layer's
    assert {t.untyped_storage().data_ptr() for t in large} == {x1.untyped_storage().data_ptr()}
    assert norm.grad_fn is not None


def test_evaluation_and_detach_leave_the_model_alone(model: nn.Module) -> None:
    ids = torch.arange(3, 11)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        regularizer = ActivationL1(find_ffns(model))
        torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=0)
        with regularizer.collect(None) as norms:
            torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=0, atol=0)
    assert all(norm is not None for norm in norms)
    regularizer.detach()
    with regularizer.collect(None) as norms, torch.no_grad():
        model(input_ids=ids)
    assert norms == [None, None]
