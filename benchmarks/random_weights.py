"""Random layers of LLaMA's and OPT's shape: activations neither grow nor fade, FFNs are as sparse as wanted.

Weights are drawn layer by layer while a few random tokens pass through them. Because a matrix is independent of its
input h, its products have the spread std * |h|, whatever the layers before did; so each matrix gets the std that gives
products of the wanted size, and nothing has to be drawn twice.

The activation is plain ReLU, which is continuous: rounding moves logits a little, and not by whole neurons as it would
with a large threshold. OPT gets its sparsity from fc1's bias. LLaMA has none, so its first 32 channels, a block of the
integer formats, are the same for every token: no layer writes to them, and gate_proj reads a negative constant there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import layer_norm, rms_norm, scaled_dot_product_attention

__all__ = ["SHAPES", "Shape", "Weights", "random_model"]

_CHUNK = 1 << 21  # elements drawn from one generator: bounds memory, and threads do not change the numbers
_SEQUENCES, _TOKENS = 4, 32  # that pass through the layers
_CONSTANT = 32  # channels of LLaMA's that stand for a bias
_SHARPNESS = 2.0  # spread of the attention scores: contexts matter, as they do in trained models

Store = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Shape:
    """A model's sizes.

    Attributes:
        family: llama (gated, RMSNorm, rotary) or opt (fc1 and fc2 with biases, LayerNorm, learned positions).
        tied: lm_head is the embedding.
    """

    family: str
    layers: int
    d_model: int
    d_ff: int
    heads: int
    kv_heads: int
    vocabulary: int
    positions: int
    tied: bool
    eps: float = 1e-5
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.d_model // self.heads


SHAPES = {
    "llama-2-7b": Shape("llama", 32, 4096, 11008, 32, 32, 32000, 4096, tied=False),
    "tinyllama": Shape("llama", 22, 2048, 5632, 32, 4, 32000, 2048, tied=False),
    "smollm2-135m": Shape("llama", 30, 576, 1536, 9, 3, 49152, 8192, tied=True, rope_theta=100000.0),
    "opt-6.7b": Shape("opt", 32, 4096, 16384, 32, 32, 50272, 2048, tied=True),
    "tiny": Shape("llama", 3, 128, 1024, 4, 2, 4096, 256, tied=False),  # for tests
    "tiny-opt": Shape("opt", 3, 128, 1024, 4, 4, 4096, 256, tied=True),
}


class Weights:
    """Seeded normal matrices in the stored type. A name always gives the same numbers, of any thread count."""

    def __init__(self, seed: int, dtype: torch.dtype, threads: int) -> None:
        self.dtype = dtype
        self.seed = seed
        self._threads = threads

    def draw(self, name: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> Tensor:
        """Return ``name``, normal with ``mean`` and ``std``, rounded to the stored type."""
        result = torch.empty(shape, dtype=self.dtype)
        flat = result.view(-1)

        def fill(number: int) -> None:
            part = flat[number * _CHUNK : (number + 1) * _CHUNK]
            source = np.random.default_rng([self.seed, zlib.crc32(name.encode()), number])
            values = source.standard_normal(len(part), np.float32)
            values *= np.float32(std)
            values += np.float32(mean)
            part.copy_(torch.from_numpy(values))

        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(fill, range(-(-len(flat) // _CHUNK))))
        return result


def _product(x: Tensor, matrix: Tensor) -> Tensor:
    """Return ``x @ matrix.T`` in float32, widening a part of ``matrix`` at a time."""
    rows = max(1, _CHUNK // matrix.shape[1])
    return torch.cat([x @ part.float().T for part in matrix.split(rows)], dim=-1)


def _length(x: Tensor) -> float:
    return float(x.norm(dim=-1).mean())


def _heads(x: Tensor, count: int) -> Tensor:
    return x.view(_SEQUENCES, _TOKENS, count, -1).transpose(1, 2)


def _rotated(x: Tensor, theta: float) -> Tensor:
    half = x.shape[-1] // 2
    angles = torch.arange(_TOKENS)[:, None] * theta ** (-torch.arange(half) / half)
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], dim=-1)


@torch.no_grad()
def random_model(
    shape: Shape, weights: Weights, sparsity: float, store: Store, progress: Callable[[int], None]
) -> list[float]:
    """Draw every tensor under transformers' name and hand it to ``store``; return each layer's measured sparsity."""
    llama = shape.family == "llama"
    prefix = "model." if llama else "model.decoder."
    branch = (2 * shape.layers) ** -0.5  # of the residual's spread: after all layers it is about 1 again
    # A tied lm_head would answer a token with itself, were its embedding much of the last hidden state.
    size = min(1.0, 2 * shape.d_model**-0.5) if shape.tied else 1.0
    source = np.random.default_rng([weights.seed, 0])
    ids = torch.from_numpy(source.integers(3, shape.vocabulary, (_SEQUENCES, _TOKENS)))

    def keep(name: str, dims: tuple[int, ...], std: float, mean: float = 0.0) -> Tensor:
        tensor = weights.draw(prefix + name, dims, std, mean)
        store(prefix + name, tensor)
        return tensor

    def normed(name: str, x: Tensor) -> Tensor:
        weight = keep(f"{name}.weight", (shape.d_model,), 0.1, 1.0).float()
        if llama:
            return rms_norm(x, (shape.d_model,), weight, shape.eps)
        bias = keep(f"{name}.bias", (shape.d_model,), 0.1).float()
        return layer_norm(x, (shape.d_model,), weight, bias, shape.eps)

    def linear(name: str, x: Tensor, d_out: int, spread: float, bias: float = 0.0, *, writes: bool = False) -> Tensor:
        """Draw a matrix and return its product; ``bias`` is added to every element, ``writes``: to the residual."""
        free = x[..., _CONSTANT:] if llama and bias else x
        weight = weights.draw(f"{prefix}{name}.weight", (d_out, x.shape[-1]), spread / max(_length(free), 1e-6))
        if llama and writes:
            weight[:_CONSTANT] = 0
        if llama and bias:
            weight[:, :_CONSTANT] = bias / _CONSTANT / x[..., :_CONSTANT].mean(dim=(0, 1))
        store(f"{prefix}{name}.weight", weight)
        y = _product(x, weight)
        return y if llama else y + keep(f"{name}.bias", (d_out,), 0.05, bias).float()

    table = weights.draw(f"{prefix}embed_tokens.weight", (shape.vocabulary, shape.d_model), size)
    if llama:
        table[:, :_CONSTANT] = max(size, 0.3)
    store(f"{prefix}embed_tokens.weight", table)
    x = table[ids].float()
    if not llama:
        positions = keep("embed_positions.weight", (shape.positions + 2, shape.d_model), size / 2)
        x = x + positions[2 : 2 + _TOKENS].float()
    measured = []
    for i in range(shape.layers):
        progress(i)
        layer = f"layers.{i}"
        h = normed(f"{layer}.{'input_layernorm' if llama else 'self_attn_layer_norm'}", x)
        q = _heads(linear(f"{layer}.self_attn.q_proj", h, shape.d_model, _SHARPNESS), shape.heads)
        k = _heads(linear(f"{layer}.self_attn.k_proj", h, shape.kv_heads * shape.head_dim, 1.0), shape.kv_heads)
        v = _heads(linear(f"{layer}.self_attn.v_proj", h, shape.kv_heads * shape.head_dim, 1.0), shape.kv_heads)
        if llama:
            q, k = _rotated(q, shape.rope_theta), _rotated(k, shape.rope_theta)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        x = x + linear(
            f"{layer}.self_attn.{'o_proj' if llama else 'out_proj'}", mixed, shape.d_model, branch, writes=True
        )
        h = normed(f"{layer}.{'post_attention_layernorm' if llama else 'final_layer_norm'}", x)
        z = linear(
            f"{layer}.{'mlp.gate_proj' if llama else 'fc1'}", h, shape.d_ff, 1.0, -NormalDist().inv_cdf(sparsity)
        )
        hidden = z.relu()
        measured.append(1.0 - float((hidden > 0).float().mean()))
        if llama:
            hidden = hidden * linear(f"{layer}.mlp.up_proj", h, shape.d_ff, 1.0)
        x = x + linear(f"{layer}.{'mlp.down_proj' if llama else 'fc2'}", hidden, shape.d_model, branch, writes=True)
    h = normed("norm" if llama else "final_layer_norm", x)
    if not shape.tied:
        store("lm_head.weight", weights.draw("lm_head.weight", (shape.vocabulary, shape.d_model), 1 / _length(h)))
    return measured
