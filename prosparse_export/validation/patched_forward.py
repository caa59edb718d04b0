"""Run PyTorch with each FFN's output replaced by the artifact's, so that only the operators between FFNs differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel

from prosparse_export.quiet import quiet
from prosparse_models import cache_argument, cache_of

__all__ = ["PatchedForward", "run_patched"]

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class PatchedForward:
    """Values that PyTorch computed with patched FFN outputs.

    Attributes:
        inputs: input of each FFN, by number, ``[tokens, d_model]``.
        linear_inputs: input of each watched linear layer, by number, ``[tokens, d_in]``.
        keys: keys of each layer, ``[kv_heads, tokens, head_dim]``.
        values: values, likewise.
        logits: ``[tokens, vocabulary]``.
    """

    inputs: Mapping[int, Array]
    linear_inputs: Mapping[int, Array]
    keys: Sequence[Array]
    values: Sequence[Array]
    logits: Array


@dataclass(frozen=True, eq=False)
class _Layer:
    keys: torch.Tensor
    values: torch.Tensor


class _PatchedCache(DynamicCache):  # type: ignore[misc]  # transformers is untyped
    """Returns the given keys and values, and keeps the model's own in ``own``."""

    def __init__(self, keys: Sequence[Array], values: Sequence[Array]) -> None:
        super().__init__()
        self._given = list(zip(keys, values, strict=True))
        self.own: list[_Layer] = []

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.own.append(_Layer(key_states, value_states))
        keys, values = (torch.from_numpy(array[None].copy()) for array in self._given[layer_idx])
        return keys.to(key_states.dtype), values.to(value_states.dtype)


@torch.no_grad()
def run_patched(
    model: PreTrainedModel,
    ffns: Sequence[Sequence[str]],
    outputs: Sequence[Array],
    watched: Sequence[str],
    ids: NDArray[np.int64],
    cache: tuple[Sequence[Array], Sequence[Array]] | None = None,
) -> PatchedForward:
    """Run ``model`` with its FFNs' outputs replaced by ``outputs``.

    If a module runs several times, its first run is watched and replaced: only the graph's first node has its name.

    Args:
        model: the PyTorch model.
        ffns: module paths of each FFN's linear layers, in order of execution, down_proj last.
        outputs: output of each FFN, ``[tokens, d_model]``.
        watched: module paths of linear layers whose inputs are returned.
        ids: token ids ``[tokens]``.
        cache: keys and values of each layer, ``[kv_heads, tokens, head_dim]``, that attention reads instead of its own.
    """
    inputs: dict[int, Array] = {}
    linear_inputs: dict[int, Array] = {}
    replaced: set[int] = set()

    def watch(into: dict[int, Array], i: int) -> Callable[..., None]:
        def hook(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            into.setdefault(i, args[0].reshape(-1, args[0].shape[-1]).float().numpy())

        return hook

    def put(i: int) -> Callable[..., torch.Tensor | None]:
        def hook(_: torch.nn.Module, __: object, output: torch.Tensor) -> torch.Tensor | None:
            if i in replaced:
                return None
            replaced.add(i)
            # copied, because Falcon adds the attention output in place
            return torch.from_numpy(outputs[i].copy()).reshape(output.shape).to(output.dtype)

        return hook

    with ExitStack() as hooks:
        for i, names in enumerate(ffns):
            first, last = model.get_submodule(names[0]), model.get_submodule(names[-1])
            hooks.callback(first.register_forward_pre_hook(watch(inputs, i)).remove)
            hooks.callback(last.register_forward_hook(put(i)).remove)
        for i, name in enumerate(watched):
            hooks.callback(model.get_submodule(name).register_forward_pre_hook(watch(linear_inputs, i)).remove)
        with quiet():
            patched = _PatchedCache(*cache) if cache is not None else None
            tokens = torch.from_numpy(ids[None].copy())
            result = model(input_ids=tokens, use_cache=True, **cache_argument(model, patched))
    after = cache_of(result)
    layers = getattr(after, "own", getattr(after, "layers", []))
    return PatchedForward(
        inputs,
        linear_inputs,
        [layer.keys[0].float().numpy() for layer in layers],
        [layer.values[0].float().numpy() for layer in layers],
        result.logits[0].float().numpy(),
    )
