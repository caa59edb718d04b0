"""Time and memory of a training step with the L1 term against the same step without.

    python benchmarks/training_overhead.py --threads 1

One process, steps with and without interleaved, medians and quartiles of the ratio. Step: forward,
cross entropy, backward, AdamW; float32. Counting zeros is included as often as `prosparse sparsify` does it,
one step in --log-every. Memory: bytes that autograd keeps between forward and backward, each storage
once, and the peak over the step of what torch allocates, from its profiler.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import LlamaConfig, LlamaForCausalLM

from prosparse_models import find_ffn_blocks, substitute_activation
from prosparse_models.training.regularizer import ActivationL1


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
    model = LlamaForCausalLM(config)
    blocks = find_ffn_blocks(model)
    substitute_activation(model, blocks, "relu")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    ids = torch.randint(0, args.vocabulary, (args.batch, args.context))
    handles: dict[bool, ActivationL1] = {}

    def forward(with_l1: bool, count: bool) -> torch.Tensor:
        if not with_l1:
            logits = model(input_ids=ids, use_cache=False).logits
            return entropy(logits)
        with handles[True].collect(None, count=count) as norms:
            logits = model(input_ids=ids, use_cache=False).logits
        l1 = torch.stack([n for n in norms if n is not None]).sum()
        return entropy(logits) + 1e-3 * l1 / ids.numel()

    def entropy(logits: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())

    def step(with_l1: bool, count: bool) -> float:
        if with_l1:
            handles[True] = ActivationL1(blocks)
        began = time.perf_counter()
        forward(with_l1, count).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - began
        if with_l1:
            handles.pop(True).detach()
        return seconds

    for _ in range(3):
        step(True, True), step(False, False)
    ratios, plain = [], []
    for pair in range(args.pairs):
        count = pair % args.log_every == 0
        if pair % 2:  # each goes first equally often
            ours, base = step(True, count), step(False, False)
        else:
            base, ours = step(False, False), step(True, count)
        ratios.append(ours / base)
        plain.append(base)
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"d_model {args.d_model}, d_ff {args.d_ff}, {args.layers} layers, {args.batch} x {args.context} tokens, "
        f"{args.threads} thread(s), {args.pairs} pairs"
    )
    print(
        f"time: {middle:.4f} times the step without L1 (quartiles {low:.4f} to {high:.4f}); "
        f"that one takes {1000 * statistics.median(plain):.1f} ms"
    )

    kept = {}
    for with_l1 in (False, True):
        if with_l1:
            handles[True] = ActivationL1(blocks)
        kept[with_l1] = kept_bytes(lambda with_l1=with_l1: forward(with_l1, True))
        if with_l1:
            handles.pop(True).detach()
    one = ids.numel() * args.d_ff * 4
    print(f"kept for backward: {kept[True] - kept[False]:+,} bytes with L1 on {kept[False]:,}; one x1 is {one:,} bytes")
    peaks = {with_l1: peak_bytes(lambda with_l1=with_l1: step(with_l1, True)) for with_l1 in (False, True)}
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
