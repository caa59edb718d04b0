"""Run a model with other weights in some of its layers, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers.pytorch_utils import Conv1D

__all__ = ["Substitute", "substituted_weights"]

Substitute = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]
"""From a module path, its matrix ``[d_out, d_in]`` in float32, and its input to the matrix to compute with."""


@contextmanager
def substituted_weights(model: torch.nn.Module, names: Iterable[str], substitute: Substitute) -> Iterator[None]:
    """Return a context in which modules compute with other weights, made when they run and dropped afterwards.

    Args:
        model: the model; where its matrices are in their files, inside a context that reads them.
        names: module paths.
        substitute: called whenever one of them runs.
    """
    own: dict[torch.nn.Module, torch.Tensor] = {}

    def before(name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
            weight = cast("torch.nn.Parameter", module.weight)
            in_major = isinstance(module, Conv1D)
            matrix = (weight.data.T if in_major else weight.data).float()
            values = substitute(name, matrix, inputs[0])
            own[module] = weight.data
            weight.data = (values.T if in_major else values).to(weight.dtype)

        return hook

    def after(module: torch.nn.Module, *_: object) -> None:
        if module in own:
            cast("torch.nn.Parameter", module.weight).data = own.pop(module)

    handles = []
    try:
        for name in names:
            module = model.get_submodule(name)
            handles.append(module.register_forward_pre_hook(before(name)))
            handles.append(module.register_forward_hook(after, prepend=True, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
