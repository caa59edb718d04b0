"""Distillation from the dense original, which helps a sparse model recover with few tokens.

Not part of ProSparse, which trains on billions of tokens; off unless a recipe enables it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_models.errors import TrainingError
from prosparse_models.ffns import Ffn

__all__ = ["logit_divergence", "recover_layers"]


def logit_divergence(
    logits: torch.Tensor, taught: torch.Tensor, targets: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return ``T^2 * sum of KL(teacher || student)`` in nats over the positions that have a target.

    Args:
        logits: the student's logits, [positions, vocabulary].
        taught: the teacher's logits, same shape.
        targets: [positions]; -100 for positions to ignore.
        temperature: T; divides both logits before the softmax.

    Source:
        Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv:1503.02531, section 2.
    """
    keep = targets != -100
    student = torch.log_softmax(logits[keep].float() / temperature, dim=-1)
    teacher = torch.log_softmax(taught[keep].float() / temperature, dim=-1)
    return temperature**2 * nn.functional.kl_div(student, teacher, reduction="sum", log_target=True)


def recover_layers(
    teacher: nn.Module,
    teacher_ffns: Sequence[Ffn],
    ffns: Sequence[Ffn],
    batches: Iterator[dict[str, torch.Tensor]],
    *,
    steps: int,
    learning_rate: float,
    device: torch.device,
    progress: ProgressCallback = no_progress,
) -> float:
    """Regress each FFN's output on the original FFN's output for the same input.

    One forward pass of the original yields every layer's input and target. The FFNs are then trained independently: no
    gradient crosses layers, and nothing else changes. The loss of a layer is its relative squared error.

    Args:
        teacher: the dense original, in evaluation mode, on ``device``.
        teacher_ffns: its FFNs.
        ffns: the FFNs to train, in the same order.
        batches: micro-batches with input_ids, different ones in each process.
        steps: optimizer steps, one micro-batch each.
        learning_rate: Adam's peak rate, with cosine decay to 0.
        device: device of the batches.
        progress: called ten times, with a stage that names the step and the relative squared error.

    Returns:
        The mean relative squared error of the last step.

    Raises:
        TrainingError: the error is not finite.
    """
    parameters = [p for ffn in ffns for p in ffn.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, betas=(0.9, 0.98))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    error = torch.zeros(())
    for step in range(steps):
        inputs, targets = _layer_pairs(teacher, teacher_ffns, next(batches)["input_ids"].to(device))
        optimizer.zero_grad()
        total = torch.zeros((), device=device)
        for ffn, x, y in zip(ffns, inputs, targets, strict=True):
            loss = (ffn.compute(x) - y).square().sum() / y.square().sum().clamp_min(1e-12)
            torch.autograd.backward(loss)  # one layer's graph at a time
            total += loss.detach()
        error = total / len(ffns)
        _average([error, *(p.grad for p in parameters if p.grad is not None)])
        if not torch.isfinite(error):
            raise TrainingError(
                f"layer recovery: step {step + 1}: expected a finite error, got {error.item()}",
                hint="lower distillation.layer_learning_rate",
            )
        optimizer.step()
        scheduler.step()
        if (step + 1) % max(1, steps // 10) == 0:
            progress(f"layer recovery, step {step + 1} of {steps}: relative squared error {error.item():.4f}", 0, 0)
    return error.item()


def _average(tensors: Sequence[torch.Tensor]) -> None:
    """Replace each tensor by its mean over the processes."""
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    for tensor in tensors if world > 1 else ():
        dist.all_reduce(tensor)
        tensor /= world


@torch.no_grad()
def _layer_pairs(
    teacher: nn.Module, ffns: Sequence[Ffn], ids: torch.Tensor
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return input and output of every FFN for ``ids`` [batch, sequence]."""
    inputs: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []

    def keep_input(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        inputs.append(arguments[0].detach().clone())

    def keep_output(_: nn.Module, arguments: tuple[Any, ...], output: torch.Tensor) -> None:
        outputs.append(output.detach().clone())

    handles: list[Any] = []
    for ffn in ffns:
        handles.append(ffn.first.register_forward_pre_hook(keep_input))
        handles.append(ffn.down.register_forward_hook(keep_output))
    try:
        teacher(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return inputs, outputs
