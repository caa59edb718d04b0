"""Time and memory of a training step with the L1 term against the same step without.

    python benchmarks/training_overhead.py --threads 1

One process, steps with and without interleaved, medians and quartiles of the ratio. Step: forward,
cross entropy, backward, AdamW; float32. Active neurons are counted as often as `prosparse sparsify` counts them,
one step in --log-every. Memory: bytes that autograd keeps between forward and backward, each storage
once, and the peak over the step of what torch allocates, from its profiler.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from common import paired_ratio
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from prosparse_models import find_ffns, substitute_activation
from prosparse_models.training.regularizer import ActivationL1


class Trial:
    """A random LLaMA that takes training steps with and without the L1 term."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=args.vocabulary,
            hidden_size=args.d_model,
            intermediate_size=args.d_ff,
            num_hidden_layers=args.layers,
            num_attention_heads=args.d_model // 32,
            num_key_value_heads=max(1, args.d_model // 128),
            tie_word_embeddings=True,
        )
        self.model = LlamaForCausalLM(config)
        self.ffns = find_ffns(self.model)
        substitute_activation(self.model, self.ffns, "relu")
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)
        self.ids = torch.randint(0, args.vocabulary, (args.batch, args.context))

    def loss(self, l1: ActivationL1 | None, *, count: bool) -> torch.Tensor:
        """Return the loss of one batch; ``count``: count active neurons too."""
        if l1 is None:
            return self._entropy(self.model(input_ids=self.ids, use_cache=False).logits)
        with l1.collect(None, count=count) as norms:
            logits = self.model(input_ids=self.ids, use_cache=False).logits
        total = torch.stack([norm for norm in norms if norm is not None]).sum()
        return self._entropy(logits) + 1e-3 * total / self.ids.numel()

    def _entropy(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), self.ids[:, 1:].flatten())

    def step(self, *, with_l1: bool, count: bool) -> float:
        """Take one step and return its seconds."""
        l1 = ActivationL1(self.ffns) if with_l1 else None
        began = time.perf_counter()
        self.loss(l1, count=count).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        seconds = time.perf_counter() - began
        if l1 is not None:
            l1.detach()
        return seconds

    def kept(self, *, with_l1: bool) -> int:
        """Return the bytes that autograd keeps between forward and backward."""
        l1 = ActivationL1(self.ffns) if with_l1 else None
        result = kept_bytes(lambda: self.loss(l1, count=True))
        if l1 is not None:
            l1.detach()
        return result


def timed(trial: Trial, pairs: int, log_every: int) -> tuple[list[float], list[float]]:
    """Return seconds of the steps with L1 and without, in pairs; each goes first equally often."""
    for _ in range(3):
        trial.step(with_l1=True, count=True), trial.step(with_l1=False, count=False)
    ours, base = [], []
    for pair in range(pairs):
        for with_l1 in (True, False) if pair % 2 else (False, True):
            seconds = trial.step(with_l1=with_l1, count=with_l1 and pair % log_every == 0)
            (ours if with_l1 else base).append(seconds)
    return ours, base


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, default=256)
    parser.add_argument("--d-ff", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    trial = Trial(args)
    ours, base = timed(trial, args.pairs, args.log_every)
    ratio = paired_ratio(ours, base)
    print(
        f"d_model {args.d_model}, d_ff {args.d_ff}, {args.layers} layers, {args.batch} x {args.context} tokens, "
        f"{args.threads} threads, {args.pairs} pairs"
    )
    print(
        f"time: {ratio.median:.4f} times the step without L1 (quartiles {ratio.low:.4f} to {ratio.high:.4f}), "
        f"which takes {1000 * statistics.median(base):.1f} ms"
    )
    kept = {with_l1: trial.kept(with_l1=with_l1) for with_l1 in (False, True)}
    one = trial.ids.numel() * args.d_ff * 4
    print(f"kept for backward: {kept[True] - kept[False]:+,} bytes with L1 on {kept[False]:,}; one x1 is {one:,} bytes")
    peaks = {with_l1: peak_bytes(lambda w=with_l1: trial.step(with_l1=w, count=True)) for with_l1 in (False, True)}
    print(f"peak of the step: {peaks[True] - peaks[False]:+,} bytes with L1 on {peaks[False]:,}")


def kept_bytes(forward: Callable[[], torch.Tensor]) -> int:
    """Return the bytes of the distinct storages that autograd saves in ``forward``."""
    storages: dict[int, int] = {}
    alive: list[torch.Tensor] = []  # so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storages.values())


def peak_bytes(step: Callable[[], float]) -> int:
    """Return the highest sum of torch's CPU allocations during ``step``, above that at its start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    total = peak = 0
    events = profiler.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


if __name__ == "__main__":
    main()
