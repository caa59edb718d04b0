"""Random weights in LLaMA's and OPT's shapes: hidden states keep their scale, FFNs have the given sparsity.

Weights are drawn layer by layer while a few random tokens pass through them. A random matrix is independent of its
input h, so its output has the standard deviation std * |h|; each matrix gets the std that gives outputs of the wanted
scale, and nothing is drawn twice.

The activation is ReLU, which is continuous: rounding changes logits a little, not by whole neurons as a large threshold
would. OPT gets its sparsity from fc1's bias. LLaMA has no bias, so its first 32 channels (one quantization group) are
the same for every token: no layer writes to them, and gate_proj reads a negative constant there.
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
_CONSTANT = 32  # channels of LLaMA's that act as a bias
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
    """Seeded normal matrices in the stored type. A name always gives the same numbers, with any number of threads."""

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


def _matmul(x: Tensor, matrix: Tensor) -> Tensor:
    """Return ``x @ matrix.T`` in float32, widening a part of ``matrix`` at a time."""
    rows = max(1, _CHUNK // matrix.shape[1])
    return torch.cat([x @ part.float().T for part in matrix.split(rows)], dim=-1)


def _length(x: Tensor) -> float:
    return float(x.norm(dim=-1).mean())


def _heads(x: Tensor, count: int) -> Tensor:
    return x.view(_SEQUENCES, _TOKENS, count, -1).transpose(1, 2)


def _rope(x: Tensor, theta: float) -> Tensor:
    half = x.shape[-1] // 2
    angles = torch.arange(_TOKENS)[:, None] * theta ** (-torch.arange(half) / half)
    one, two = x[..., :half], x[..., half:]
    return torch.cat([one * angles.cos() - two * angles.sin(), two * angles.cos() + one * angles.sin()], dim=-1)


class _Layers:
    """Draws tensors under transformers' names while hidden states ``[sequences, tokens, d_model]`` pass."""

    def __init__(self, shape: Shape, weights: Weights, sparsity: float, store: Store) -> None:
        self.shape, self._weights, self._store = shape, weights, store
        self.llama = shape.family == "llama"
        self._prefix = "model." if self.llama else "model.decoder."
        self._branch = (2 * shape.layers) ** -0.5  # of the residual's spread: after all layers it is about 1 again
        self._gate_bias = -NormalDist().inv_cdf(sparsity)

    def keep(self, name: str, dims: tuple[int, ...], std: float, mean: float = 0.0) -> Tensor:
        """Draw and store a tensor."""
        tensor = self._weights.draw(self._prefix + name, dims, std, mean)
        self._store(self._prefix + name, tensor)
        return tensor

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Draw a norm and apply it."""
        shape = self.shape
        weight = self.keep(f"{name}.weight", (shape.d_model,), 0.1, 1.0).float()
        if self.llama:
            return rms_norm(x, (shape.d_model,), weight, shape.eps)
        bias = self.keep(f"{name}.bias", (shape.d_model,), 0.1).float()
        return layer_norm(x, (shape.d_model,), weight, bias, shape.eps)

    def linear(
        self, name: str, x: Tensor, d_out: int, spread: float, bias: float = 0.0, *, writes: bool = False
    ) -> Tensor:
        """Draw a projection and apply it.

        Args:
            name: the module.
            x: ``[..., d_in]``.
            d_out: output features.
            spread: standard deviation of the output.
            bias: mean of the output.
            writes: the output is added to the residual.
        """
        free = x[..., _CONSTANT:] if self.llama and bias else x
        full = f"{self._prefix}{name}.weight"
        weight = self._weights.draw(full, (d_out, x.shape[-1]), spread / max(_length(free), 1e-6))
        if self.llama and writes:
            weight[:_CONSTANT] = 0
        if self.llama and bias:
            weight[:, :_CONSTANT] = bias / _CONSTANT / x[..., :_CONSTANT].mean(dim=(0, 1))
        self._store(full, weight)
        y = _matmul(x, weight)
        return y if self.llama else y + self.keep(f"{name}.bias", (d_out,), 0.05, bias).float()

    def embed(self, ids: Tensor, size: float) -> Tensor:
        """Draw the embedding, and OPT's positions, and look ``ids`` up."""
        shape = self.shape
        table = self._weights.draw(f"{self._prefix}embed_tokens.weight", (shape.vocabulary, shape.d_model), size)
        if self.llama:
            table[:, :_CONSTANT] = max(size, 0.3)
        self._store(f"{self._prefix}embed_tokens.weight", table)
        x = table[ids].float()
        if self.llama:
            return x
        positions = self.keep("embed_positions.weight", (shape.positions + 2, shape.d_model), size / 2)
        return x + positions[2 : 2 + _TOKENS].float()

    def attention(self, layer: str, x: Tensor) -> Tensor:
        """Return ``x`` plus a layer's attention."""
        shape = self.shape
        h = self.norm(f"{layer}.{'input_layernorm' if self.llama else 'self_attn_layer_norm'}", x)
        q = _heads(self.linear(f"{layer}.self_attn.q_proj", h, shape.d_model, _SHARPNESS), shape.heads)
        k = _heads(self.linear(f"{layer}.self_attn.k_proj", h, shape.kv_heads * shape.head_dim, 1.0), shape.kv_heads)
        v = _heads(self.linear(f"{layer}.self_attn.v_proj", h, shape.kv_heads * shape.head_dim, 1.0), shape.kv_heads)
        if self.llama:
            q, k = _rope(q, shape.rope_theta), _rope(k, shape.rope_theta)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        out = f"{layer}.self_attn.{'o_proj' if self.llama else 'out_proj'}"
        mixed = mixed.transpose(1, 2).reshape(x.shape)
        return x + self.linear(out, mixed, shape.d_model, self._branch, writes=True)

    def ffn(self, layer: str, x: Tensor) -> tuple[Tensor, float]:
        """Return ``x`` plus a layer's FFN, and the FFN's activation sparsity."""
        shape = self.shape
        h = self.norm(f"{layer}.{'post_attention_layernorm' if self.llama else 'final_layer_norm'}", x)
        first = f"{layer}.{'mlp.gate_proj' if self.llama else 'fc1'}"
        hidden = self.linear(first, h, shape.d_ff, 1.0, self._gate_bias).relu()
        sparsity = 1.0 - float((hidden > 0).float().mean())
        if self.llama:
            hidden = hidden * self.linear(f"{layer}.mlp.up_proj", h, shape.d_ff, 1.0)
        last = f"{layer}.{'mlp.down_proj' if self.llama else 'fc2'}"
        return x + self.linear(last, hidden, shape.d_model, self._branch, writes=True), sparsity


@torch.no_grad()
def random_model(
    shape: Shape, weights: Weights, sparsity: float, store: Store, progress: Callable[[int], None]
) -> list[float]:
    """Draw every tensor under transformers' name and hand it to ``store``; return each layer's measured sparsity."""
    layers = _Layers(shape, weights, sparsity, store)
    # With a large embedding, a tied lm_head would predict the input token itself.
    size = min(1.0, 2 * shape.d_model**-0.5) if shape.tied else 1.0
    source = np.random.default_rng([weights.seed, 0])
    ids = torch.from_numpy(source.integers(3, shape.vocabulary, (_SEQUENCES, _TOKENS)))
    x = layers.embed(ids, size)
    measured = []
    for i in range(shape.layers):
        progress(i)
        x, found = layers.ffn(f"layers.{i}", layers.attention(f"layers.{i}", x))
        measured.append(found)
    h = layers.norm("norm" if layers.llama else "final_layer_norm", x)
    if not shape.tied:
        store("lm_head.weight", weights.draw("lm_head.weight", (shape.vocabulary, shape.d_model), 1 / _length(h)))
    return measured
