"""Find the FFNs of a model by what its modules compute, not by class names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn

from prosparse_models.errors import TrainingError

__all__ = ["Ffn", "find_ffns"]

_PROBE_TOKENS = 8


@dataclass(frozen=True)
class Ffn:
    """One FFN: ``down(act(gate(x)) * up(x))``, or ``down(act(up(x)))`` without a gate.

    Attributes:
        name: dotted name of the module that holds the activation, for example ``model.layers.0.mlp``.
        parent: that module.
        activation_name: attribute of ``parent`` that holds the activation, for example ``act_fn``.
        gate: the linear layer that feeds the activation; None if the FFN is ungated.
        up: the other linear layer of a gated FFN, or the first one of an ungated FFN. If gate and up share one
            matrix, both are that layer.
        down: the linear layer whose input is the intermediate output (x1 in the paper).
        d_ff: number of neurons: the width of ``down``'s input.
    """

    name: str
    parent: nn.Module
    activation_name: str
    gate: nn.Module | None
    up: nn.Module
    down: nn.Module
    d_ff: int

    @property
    def activation(self) -> nn.Module:
        """The FFN's current activation."""
        module = getattr(self.parent, self.activation_name)
        assert isinstance(module, nn.Module)
        return module

    @property
    def first(self) -> nn.Module:
        """The linear layer whose input is the FFN's input."""
        return self.up if self.gate is None else self.gate

    @property
    def is_merged(self) -> bool:
        """Whether gate and up are one matrix (gate first, as in Phi-3)."""
        return self.gate is self.up

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the FFN's linear layers, each once."""
        for layer in dict.fromkeys((self.first, self.up, self.down)):
            yield from layer.parameters()

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """Return the FFN's output for its input ``x`` [..., d_model]; shape [..., d_model]."""
        if self.gate is None:
            hidden = self.activation(self.up(x))
        elif self.is_merged:
            gate, up = self.gate(x).chunk(2, dim=-1)
            hidden = self.activation(gate) * up
        else:
            hidden = self.activation(self.gate(x)) * self.up(x)
        result = self.down(hidden)
        assert isinstance(result, torch.Tensor)
        return result


@dataclass
class _Seen:
    """Input and output of one call of a module."""

    x: torch.Tensor
    y: torch.Tensor


def find_ffns(model: nn.Module) -> list[Ffn]:
    """Return the FFNs of ``model`` in the order in which they run.

    The model runs on a few tokens, and FFNs are recognized by matching values: a module without parameters (the
    activation) takes a linear layer's output, and a sibling linear layer takes the activation's output, or that times
    another sibling's output. This finds LLaMA's gate_proj, GPT-NeoX's dense_h_to_4h, OPT's fc1 and a merged
    gate_up_proj without relying on names.

    Args:
        model: a causal language model; it is not changed.

    Raises:
        TrainingError: there are no FFNs.
    """
    ffns = []
    with _record(model) as seen:
        ids = torch.arange(1, _PROBE_TOKENS + 1, device=next(model.parameters()).device)[None]
        mode = model.training
        model.eval()  # dropout between activation and down would hide the FFN
        try:
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)
        finally:
            model.train(mode)
    for name, parent in model.named_modules():
        ffn = _ffn_of(name, parent, seen)
        if ffn is not None:
            ffns.append(ffn)
    if not ffns:
        raise TrainingError(
            f"model: {type(model).__name__}: no FFNs (linear, activation, linear) found",
            hint="mixtures of experts with fused expert matrices are not supported; use a dense model",
        )
    return ffns


def _ffn_of(name: str, parent: nn.Module, seen: dict[nn.Module, list[_Seen]]) -> Ffn | None:
    children = dict(parent.named_children())
    linear = {child: seen[child][-1] for child in children.values() if _is_linear(child) and child in seen}
    for key, activation in children.items():
        if any(True for _ in activation.parameters()):
            continue
        for act in seen.get(activation, []):  # layers may share one activation module
            if act.x.shape != act.y.shape or torch.equal(act.x, act.y):
                continue  # a dropout or an identity
            sources = [layer for layer, call in linear.items() if _feeds(call.y, act.x)]
            for (down, down_call), source in product(linear.items(), sources):
                if down is source or down_call.x.shape != act.y.shape:
                    continue
                ffn = partial(Ffn, name, parent, key, down=down, d_ff=act.y.shape[-1])
                if torch.equal(down_call.x, act.y):
                    return ffn(gate=None, up=source)
                for up, call in linear.items():
                    other = _other_factor(call.y, act.x, merged=up is source)
                    if other is not None and torch.equal(down_call.x, act.y * other):
                        return ffn(gate=source, up=up)
    return None


def _feeds(output: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether ``value`` is ``output`` (up to its shape) or the first half of its last dimension."""
    width = value.shape[-1]
    if output.shape[-1] not in (width, 2 * width) or output.numel() // output.shape[-1] != value.numel() // width:
        return False
    return torch.equal(output[..., :width].reshape(value.shape), value)


def _other_factor(output: torch.Tensor, value: torch.Tensor, *, merged: bool) -> torch.Tensor | None:
    width = value.shape[-1]
    if output.shape[-1] != (2 * width if merged else width):
        return None
    half = output[..., width:] if merged else output
    return half.reshape(value.shape) if half.numel() == value.numel() else None


def _is_linear(module: nn.Module) -> bool:
    """Return whether ``module`` has one matrix: nn.Linear, GPT-2's Conv1D, and quantized or wrapped variants."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


@contextmanager
def _record(model: nn.Module) -> Iterator[dict[nn.Module, list[_Seen]]]:
    """Record input and output of every module call that maps one tensor to one tensor."""
    seen: dict[nn.Module, list[_Seen]] = {}

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if len(arguments) == 1 and all(isinstance(t, torch.Tensor) for t in (arguments[0], output)):
            seen.setdefault(module, []).append(_Seen(arguments[0].detach(), output.detach()))

    leaves = [m for m in model.modules() if _is_linear(m) or not any(True for _ in m.parameters())]
    handles = [leaf.register_forward_hook(hook) for leaf in leaves]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
