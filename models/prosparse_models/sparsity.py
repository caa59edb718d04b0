"""Measure activation sparsity and perplexity on text, keeping counts instead of activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_models.activation import has_up_relu
from prosparse_models.ffns import Ffn

__all__ = ["Measurement", "SparsityMeter", "measure"]


@dataclass(frozen=True)
class Measurement:
    """Perplexity and activation sparsity of a model on a text.

    Attributes:
        tokens: tokens counted, without padding.
        perplexity: exp of the mean cross entropy of the next token, in nats.
        sparsity: mean over layers of the fraction of exact zeros at down_proj's input.
        sparsity_by_layer: that fraction, per layer.
        skipped_by_layer: fraction of neurons that the sparse operators skip, per layer: those
            whose gate is zero. Lower than the sparsity for dReLU, which has a ReLU after up_proj too; otherwise equal.
        dead_by_layer: neurons that were zero at every token, per layer.
        always_on_by_layer: neurons that were zero at no token, per layer.
        d_ff: neurons per layer.
    """

    tokens: int
    perplexity: float
    sparsity: float
    sparsity_by_layer: tuple[float, ...]
    skipped_by_layer: tuple[float, ...]
    dead_by_layer: tuple[int, ...]
    always_on_by_layer: tuple[int, ...]
    d_ff: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON."""
        return asdict(self)


class SparsityMeter:
    """Counts, per neuron, at how many tokens down_proj's input is not exactly zero; for dReLU also the gate.

    Memory: one or two int64 per neuron. NaN counts as active.

    Args:
        ffns: the FFNs to watch.
    """

    def __init__(self, ffns: Sequence[Ffn]) -> None:
        self._ffns = list(ffns)
        device = next(self._ffns[0].down.parameters()).device
        self.tokens = torch.zeros((), dtype=torch.int64, device=device)
        self.active = [torch.zeros(ffn.d_ff, dtype=torch.int64, device=device) for ffn in self._ffns]
        self.active_gates = {  # by FFN; elsewhere the gate alone decides what is zero
            i: torch.zeros_like(self.active[i]) for i, ffn in enumerate(self._ffns) if _is_drelu(ffn)
        }
        self._mask: torch.Tensor | None = None

    @contextmanager
    def watch(self, mask: torch.Tensor | None) -> Iterator[None]:
        """Count the forward pass inside. ``mask`` [batch, sequence]: 0 for tokens that do not count."""
        self._mask = mask
        handles = [ffn.down.register_forward_pre_hook(self._hook_of(index)) for index, ffn in enumerate(self._ffns)]
        handles += [self._ffns[i].first.register_forward_hook(self._gate_hook_of(i)) for i in self.active_gates]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook_of(self, index: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(_: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            active = self._counted(arguments[0])
            self.active[index] += active.sum(0)
            if index == 0:
                self.tokens += active.shape[0] if self._mask is None else self._mask.bool().sum()

        return hook

    def _gate_hook_of(self, index: int) -> Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], None]:
        activation = self._ffns[index].activation

        def hook(_: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            self.active_gates[index] += self._counted(activation(output)).sum(0)

        return hook

    def _counted(self, values: torch.Tensor) -> torch.Tensor:
        active = (values != 0).flatten(0, -2)
        return active if self._mask is None else active & self._mask.flatten().bool()[:, None]


def _is_drelu(ffn: Ffn) -> bool:
    return ffn.gate is not None and not ffn.is_merged and has_up_relu(ffn.up)


@torch.no_grad()
def measure(
    model: nn.Module,
    ffns: Sequence[Ffn],
    rows: Sequence[torch.Tensor],
    *,
    batch: int = 8,
    rank: int = 0,
    world_size: int = 1,
    reduce: Callable[[torch.Tensor], torch.Tensor] = lambda counts: counts,
    stage: str = "perplexity",
    progress: ProgressCallback = no_progress,
) -> Measurement:
    """Return perplexity and activation sparsity of ``model`` on ``rows``.

    Args:
        model: a causal language model; it runs in evaluation mode.
        ffns: its FFNs.
        rows: token ids, each [sequence], all of one length, at least 2.
        batch: rows per forward pass.
        rank: rank of this process, which takes every ``world_size``-th row. Processes with fewer rows repeat one
            without counting it, so that all run the model equally often, as FSDP needs.
        world_size: number of processes.
        reduce: sums a tensor over the processes.
        stage: name of the stage for ``progress``.
        progress: called after each batch, with the rows done.
    """
    meter = SparsityMeter(ffns)
    mode = model.training
    model.eval()
    entropy = torch.zeros(2, dtype=torch.float64, device=meter.tokens.device)  # sum of nats, predictions
    share = math.ceil(len(rows) / world_size)
    mine = [rank + world_size * k for k in range(share)]
    try:
        for first in range(0, share, batch):
            entropy += _measure_batch(model, meter, rows, mine[first : first + batch])
            progress(stage, min(first + batch, share), share)
    finally:
        model.train(mode)
    counts = [reduce(meter.tokens), *(reduce(active) for active in meter.active)]
    gates = {index: reduce(active) for index, active in meter.active_gates.items()}
    entropy = reduce(entropy)
    tokens = int(counts[0])
    by_layer = tuple(_share_of_zeros(active, tokens) for active in counts[1:])
    skipped = tuple(_share_of_zeros(gates[i], tokens) if i in gates else share for i, share in enumerate(by_layer))
    nats_per_token = (entropy[0] / entropy[1]).item()
    return Measurement(
        tokens=tokens,
        perplexity=math.exp(nats_per_token) if nats_per_token < 700 else math.inf,
        sparsity=sum(by_layer) / len(by_layer),
        sparsity_by_layer=by_layer,
        skipped_by_layer=skipped,
        dead_by_layer=tuple(int((active == 0).sum()) for active in counts[1:]),
        always_on_by_layer=tuple(int((active == tokens).sum()) for active in counts[1:]),
        d_ff=tuple(ffn.d_ff for ffn in ffns),
    )


def _measure_batch(
    model: nn.Module, meter: SparsityMeter, rows: Sequence[torch.Tensor], indices: Sequence[int]
) -> torch.Tensor:
    """Return the sum of nats and the number of predictions for some rows; an index beyond the end is not counted."""
    device = meter.tokens.device
    ids = torch.stack([rows[i % len(rows)] for i in indices]).to(device)
    mask = torch.tensor([i < len(rows) for i in indices], device=device)[:, None].expand_as(ids)
    with meter.watch(mask):
        logits = model(input_ids=ids, use_cache=False).logits
    nats = nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
    ).view(len(indices), -1)
    return torch.stack([(nats.double() * mask[:, 1:]).sum(), mask[:, 1:].sum().double()])


def _share_of_zeros(active: torch.Tensor, tokens: int) -> float:
    return 1.0 - active.double().mean().item() / tokens
