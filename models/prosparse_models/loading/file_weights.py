"""Weights left in their files: a model whose matrices are placeholders, filled one module at a time.

A placeholder has its matrix's shape but almost no memory: its elements overlap, with strides 1, 2, ... The exporter's
views and transposes of it are recognized by their address and strides. It holds NaN, so that accidental use shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from prosparse_models.errors import CheckpointError

__all__ = ["Change", "FileWeight", "FileWeights", "check_finite"]

Change = Callable[[str, torch.Tensor, Callable[[torch.Size], torch.Tensor]], torch.Tensor]
"""See `FileWeights.filled`."""


@dataclass(frozen=True)
class FileWeight:
    """A matrix in a file.

    Attributes:
        name: its name in the file.
        stored: the tensor, mapped from the file, in the file's dtype.
        factor: the factor applied when it is read.
    """

    name: str
    stored: torch.Tensor
    factor: float = 1.0

    def read(self) -> torch.Tensor:
        """Return the matrix in float32; without a copy if it is float32 and unscaled.

        Raises:
            CheckpointError: it contains NaN or Inf.
        """
        return self.narrow().float()

    def narrow(self) -> torch.Tensor:
        """Return the matrix in the file's dtype, without a copy; in float32 if it is scaled.

        Raises:
            CheckpointError: it contains NaN or Inf.
        """
        return self._finite if self.factor == 1.0 else self._finite.float() * self.factor

    @cached_property
    def _finite(self) -> torch.Tensor:
        check_finite(self.name, self.stored)
        return self.stored


def check_finite(name: str, values: torch.Tensor) -> None:
    """Raise unless all values are finite.

    Raises:
        CheckpointError: they are not.
    """
    if not values.is_floating_point() or not values.numel():
        return
    if all(end.isfinite() for end in torch.aminmax(values)):  # a NaN is both
        return
    bad = int((~values.isfinite()).sum())
    raise CheckpointError(
        f"weights: {name}: expected finite values, got {bad} NaN or Inf of {values.numel()}",
        hint="the weight file is damaged, or training diverged: copy the file again, or use another checkpoint",
    )


_NAN = 0x7FC00000  # bits of a float32 NaN; the low 22 bits are free


class FileWeights:
    """The weight files of a model folder.

    Attributes:
        state_dict: a tensor for each name: placeholders for matrices, everything else in float32.

    Args:
        files: safetensors files, or pickled ones, which are read without running code.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.state_dict: dict[str, torch.Tensor] = {}
        self._weights: dict[int, FileWeight] = {}
        self._storages: list[torch.Tensor] = []  # kept alive, so that no other tensor reuses an address
        for path in files:
            for name, tensor in _tensors(path):
                if tensor.ndim > 1 and tensor.is_floating_point():
                    self.state_dict[name] = self._placeholder(FileWeight(name, tensor))
                else:
                    check_finite(name, tensor)
                    self.state_dict[name] = tensor.float() if tensor.is_floating_point() else tensor.clone()

    def weight(self, address: int) -> FileWeight | None:
        """Return the matrix whose placeholder begins at ``address``, or None."""
        return self._weights.get(address)

    def values(self, parameter: nn.Parameter) -> torch.Tensor:
        """Return a parameter's values, read from its file if it is a placeholder."""
        weight = self._weights.get(parameter.data_ptr())
        return parameter.detach() if weight is None else weight.read()

    def scale(self, parameter: nn.Parameter, factor: float) -> nn.Parameter:
        """Return ``parameter`` times ``factor`` as a new parameter."""
        weight = self._weights.get(parameter.data_ptr())
        scaled = parameter.detach() * factor if weight is None else self._placeholder(replace(weight, factor=factor))
        return nn.Parameter(scaled, requires_grad=False)

    def is_complete(self, model: nn.Module) -> bool:
        """Return whether the loader kept every matrix whole: each parameter is a placeholder or free of NaN."""
        return all(
            parameter.data_ptr() in self._weights or not parameter.isnan().any() for parameter in model.parameters()
        )

    @contextmanager
    def filled(self, model: nn.Module, change: Change = lambda _, weight, memory: weight) -> Iterator[None]:
        """Let ``model`` compute: a module's weights are read before it runs and dropped afterwards.

        Args:
            model: a model built from `state_dict`.
            change: called with a parameter's path in the model, its values, exact, in any float dtype, and a function
                that returns memory for float32 values of a shape; returns the values to use.
        """
        handles = []
        placeholders: dict[nn.Parameter, torch.Tensor] = {}
        buffers = _Buffers()

        def fill(path: str) -> Callable[..., None]:
            def hook(module: nn.Module, *_: object) -> None:
                for name, parameter in module.named_parameters(recurse=False):
                    weight = self._weights.get(parameter.data_ptr())
                    if weight is not None:
                        placeholders[parameter] = parameter.data
                        parameter.data = buffers.float32(change(f"{path}.{name}", weight.narrow(), buffers.empty))

            return hook

        def restore(module: nn.Module, *_: object) -> None:
            for parameter in module.parameters(recurse=False):
                if parameter in placeholders:
                    buffers.give_back(parameter.data)
                    parameter.data = placeholders.pop(parameter)

        for path, module in model.named_modules():
            if any(p.data_ptr() in self._weights for p in module.parameters(recurse=False)):
                handles.append(module.register_forward_pre_hook(fill(path)))
                handles.append(module.register_forward_hook(restore, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _placeholder(self, weight: FileWeight) -> torch.Tensor:
        shape = weight.stored.shape
        strides = range(1, len(shape) + 1)
        elements = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
        bits = _NAN + len(self._weights)  # distinct: the exporter merges small constants with equal bits
        storage = torch.full((elements,), bits, dtype=torch.int32).view(torch.float32)
        self._storages.append(storage)
        self._weights[storage.data_ptr()] = weight
        return storage.as_strided(shape, tuple(strides))


class _Buffers:
    """Memory for float32 copies, used again: new memory costs ten times what the conversion does."""

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []
        self._used: dict[int, torch.Tensor] = {}

    def float32(self, values: torch.Tensor) -> torch.Tensor:
        """Return ``values`` in float32, a copy in one of the buffers if they have another type."""
        return values if values.dtype == torch.float32 else self.empty(values.shape).copy_(values)

    def empty(self, shape: torch.Size) -> torch.Tensor:
        """Return one of the buffers as a float32 tensor, not filled."""
        size = math.prod(shape)
        fitting = [buffer for buffer in self._free if buffer.numel() >= size]
        if fitting:
            buffer = min(fitting, key=torch.numel)
            self._free = [other for other in self._free if other is not buffer]
        else:
            self._free.clear()  # too small
            buffer = torch.empty(size)
        self._used[buffer.data_ptr()] = buffer
        return buffer[:size].view(shape)

    def give_back(self, values: torch.Tensor) -> None:
        """Use the memory of ``values`` again."""
        buffer = self._used.pop(values.data_ptr(), None)
        if buffer is not None:
            self._free.append(buffer)


def _tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a file, memory-mapped."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dictionary)
                yield name, shard.get_tensor(name)
    else:
        yield from torch.load(path, weights_only=True, mmap=True).items()
