"""PyTorch on an artifact's own feed-forward results, so that only what lies between them is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from prosparse_export.quiet import quiet

__all__ = ["Forced", "run_forced"]

Array = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Forced:
    """What PyTorch computed.

    Attributes:
        inputs: of each feed-forward block, by number, ``[tokens, d_model]``.
        site_inputs: of each linear layer that was watched, by number, ``[tokens, in]``.
        keys: of each layer, ``[kv_heads, tokens, head_dim]``.
        values: likewise.
        logits: ``[tokens, vocabulary]``.
    """

    inputs: Mapping[int, Array]
    site_inputs: Mapping[int, Array]
    keys: Sequence[Array]
    values: Sequence[Array]
    logits: Array


@torch.no_grad()
def run_forced(
    model: PreTrainedModel,
    blocks: Sequence[Sequence[str]],
    outputs: Sequence[Array],
    watched: Sequence[str],
    ids: NDArray[np.int64],
) -> Forced:
    """Run ``model`` on ``ids``, ``[tokens]``, with ``outputs`` in place of what its feed-forward blocks give.

    Of a module that runs several times the first run is watched and replaced: the graph's first node has its name.

    Args:
        model: PyTorch's model.
        blocks: module paths of each block's linear layers, the first to run first, down_proj last.
        outputs: what each block shall give, ``[tokens, d_model]``.
        watched: module paths of linear layers whose inputs are wanted.
        ids: the text.
    """
    inputs: dict[int, Array] = {}
    site_inputs: dict[int, Array] = {}
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
            # A copy: Falcon adds attention's result to it in place.
            return torch.from_numpy(outputs[i].copy()).reshape(output.shape).to(output.dtype)

        return hook

    with ExitStack() as hooks:
        for i, names in enumerate(blocks):
            first, last = model.get_submodule(names[0]), model.get_submodule(names[-1])
            hooks.callback(first.register_forward_pre_hook(watch(inputs, i)).remove)
            hooks.callback(last.register_forward_hook(put(i)).remove)
        for i, name in enumerate(watched):
            hooks.callback(model.get_submodule(name).register_forward_pre_hook(watch(site_inputs, i)).remove)
        with quiet():
            result = model(input_ids=torch.from_numpy(ids[None].copy()), use_cache=True)
    layers = getattr(result.past_key_values, "layers", [])
    return Forced(
        inputs,
        site_inputs,
        [layer.keys[0].float().numpy() for layer in layers],
        [layer.values[0].float().numpy() for layer in layers],
        result.logits[0].float().numpy(),
    )
