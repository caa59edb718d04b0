"""transformers' Trainer with the progressive L1 term in the loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from prosparse_models.errors import TrainingError
from prosparse_models.ffns import Ffn
from prosparse_models.training.distillation import logit_divergence
from prosparse_models.training.recipe import Recipe
from prosparse_models.training.regularizer import ActivationL1
from prosparse_models.training.saving import complete_checkpoints
from prosparse_models.training.schedule import l1_coefficient

__all__ = ["ProSparseTrainer", "last_good", "sum_over_processes", "training_arguments"]


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of ``values`` over the processes of a distributed run; itself in a single one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def training_arguments(recipe: Recipe, folder: str, **options: Any) -> TrainingArguments:
    """Return the Trainer's arguments for ``recipe``; ``options`` are passed to TrainingArguments.

    Raises:
        TrainingError: sequences_per_step is not a multiple of micro_batch times processes.
    """
    t = recipe.training
    if t.gradient_checkpointing:
        options |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    if not options.get("use_cpu", True):
        options.setdefault("dataloader_num_workers", 1)  # tokenizes while the accelerator computes
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=recipe.steps,
        per_device_train_batch_size=t.micro_batch,
        learning_rate=t.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": t.final_learning_rate},
        warmup_steps=t.warmup_steps,
        weight_decay=t.weight_decay,
        adam_beta1=t.adam_beta1,
        adam_beta2=t.adam_beta2,
        max_grad_norm=t.max_grad_norm,
        bf16=t.precision == "bfloat16",
        fp16=t.precision == "float16",
        seed=t.seed,
        eval_strategy="no",
        save_strategy="steps",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        **options,
    )
    together = t.micro_batch * arguments.world_size
    if t.sequences_per_step % together:
        raise TrainingError(
            f"recipe: training.sequences_per_step: expected a multiple of micro_batch x processes "
            f"({t.micro_batch} x {arguments.world_size}), got {t.sequences_per_step}",
            hint=f"--set training.sequences_per_step={max(1, t.sequences_per_step // together) * together}",
        )
    arguments.gradient_accumulation_steps = t.sequences_per_step // together
    return arguments


class ProSparseTrainer(Trainer):
    """Minimizes ``cross entropy + lambda(step) * scale * L1``; see `ActivationL1` for the L1.

    Both terms are means over all tokens of the optimizer step except padding, across micro-batches and processes. So
    one process with gradient accumulation and several processes compute the same loss. A non-finite loss stops training
    before it reaches the weights.

    Args:
        model: the model, with its activation substituted.
        ffns: its FFNs.
        recipe: l1_scale and distillation settings.
        stages: the schedule, which `steer_stages` may change; ``recipe.stages`` if None.
        teacher: the dense original, for ``distillation.logit_weight`` > 0.
        args: from `training_arguments`.
        train_dataset: rows with input_ids, labels and, if there is padding, attention_mask.
        callbacks: see Trainer.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: PreTrainedModel,
        ffns: Sequence[Ffn],
        recipe: Recipe,
        args: TrainingArguments,
        train_dataset: Any,
        *,
        stages: list[tuple[float, int]] | None = None,
        teacher: PreTrainedModel | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        super().__init__(model=model, args=args, train_dataset=train_dataset, callbacks=callbacks)
        self._ffns = list(ffns)
        self._recipe = recipe
        self.stages = list(recipe.stages) if stages is None else stages
        self._teacher = None if teacher is None else teacher.eval().requires_grad_(False).to(args.device)
        self._l1 = ActivationL1(self._ffns)
        # cross entropy, divergence, L1, tokens, predictions, counted tokens; then active elements per FFN
        self._sums = torch.zeros(6 + len(self._ffns), dtype=torch.float64, device=args.device)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """Return the micro-batches of one step and, over all processes, [predictions, tokens] in them."""
        batches: list[Any] = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
        counts = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            counts[0] += (batch["labels"][:, 1:] != -100).sum().item()
            mask = batch.get("attention_mask")
            counts[1] += batch["labels"].numel() if mask is None else mask.sum().item()
        return batches, sum_over_processes(counts.to(device))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return a micro-batch's loss, scaled so that gradients add up over micro-batches and processes."""
        assert isinstance(num_items_in_batch, torch.Tensor)
        predictions, tokens = num_items_in_batch.tolist()
        labels = inputs["labels"]
        arguments = {key: value for key, value in inputs.items() if key != "labels"}
        mask = arguments.get("attention_mask")
        step = self.state.global_step + 1
        counts = step % self._log_every() == 0 or step == 1
        with self._l1.collect(mask, count=counts) as norms:
            outputs = model(**arguments, use_cache=False)
        l1 = torch.stack([norm for norm in norms if norm is not None]).sum()
        targets = labels[:, 1:].flatten()
        logits = outputs.logits[:, :-1].flatten(0, 1)
        entropy = cross_entropy(logits.float(), targets, ignore_index=-100, reduction="sum")
        weight, divergence = self._recipe.distillation.logit_weight, torch.zeros_like(entropy)
        if weight > 0 and self._teacher is not None:
            with torch.no_grad():
                taught = self._teacher(**arguments, use_cache=False).logits[:, :-1].flatten(0, 1)
            divergence = logit_divergence(logits, taught, targets, self._recipe.distillation.temperature)
        coefficient = l1_coefficient(step, self.stages) * self._recipe.l1_scale
        data = (1.0 - weight) * entropy + weight * divergence
        loss = data / max(predictions, 1.0) + coefficient * l1 / tokens
        self._check_finite(loss, step)
        self._note(entropy, divergence, l1, tokens, predictions, counts)
        loss = loss * self.args.world_size  # DDP and FSDP average gradients
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add lambda, the loss's terms, perplexity and sparsity to a training record."""
        if "loss" in logs:
            logs = {**logs, **self._terms()}
        super().log(logs, start_time)

    def _note(
        self,
        entropy: torch.Tensor,
        divergence: torch.Tensor,
        l1: torch.Tensor,
        tokens: float,
        predictions: float,
        counts: bool,
    ) -> None:
        share = 1.0 / self.args.world_size / self.args.gradient_accumulation_steps
        with torch.no_grad():
            parts = [entropy.detach(), divergence.detach(), l1.detach()]
            self._sums[:3] += torch.stack([p.double() for p in parts])
            counted = tokens * share if counts else 0.0
            shares = [tokens * share, predictions * share, counted]
            self._sums[3:6] += torch.tensor(shares, dtype=torch.float64, device=self._sums.device)
            if counts:
                active = [a for a in self._l1.active() if a is not None]
                self._sums[6:] += torch.stack(active).double()

    def _log_every(self) -> int:
        """Return the steps between records; a resumed run keeps the checkpoint's."""
        return max(1, int(self.state.logging_steps or self.args.logging_steps))

    def _terms(self) -> dict[str, Any]:
        """Return the means since the last record, over all processes; sparsity is the last step's."""
        sums = sum_over_processes(self._sums)
        entropy, divergence, l1, tokens, predictions, counted = sums[:6].tolist()
        active = sums[6:].tolist()
        self._sums.zero_()
        step = self.state.global_step
        terms: dict[str, Any] = {
            "lambda": l1_coefficient(step, self.stages),
            "cross_entropy": entropy / max(predictions, 1.0),
            "l1": l1 / max(tokens, 1.0),
        }
        terms["perplexity"] = float(torch.tensor(terms["cross_entropy"]).exp())
        if self._recipe.distillation.logit_weight > 0:
            terms["divergence"] = divergence / max(predictions, 1.0)
        if counted:
            by_layer = [1.0 - a / (counted * ffn.d_ff) for a, ffn in zip(active, self._ffns, strict=True)]
            terms["sparsity_by_layer"] = by_layer
            terms["sparsity"] = sum(by_layer) / len(by_layer)
        return terms

    def _check_finite(self, loss: torch.Tensor, step: int) -> None:
        bad = sum_over_processes((~torch.isfinite(loss.detach())).float())
        if bad.item() == 0:
            return
        raise TrainingError(
            f"training: step {step}: expected a finite loss, got {loss.item()}; stopped before the weights changed",
            hint=last_good(Path(str(self.args.output_dir)))
            + "lower training.learning_rate or the lambdas, or train in float32",
        )


def last_good(folder: Path) -> str:
    """Return a hint that names the newest complete checkpoint, or ""."""
    found = complete_checkpoints(folder)
    return f"the last good checkpoint is {found[-1]}: " if found else ""


def collate(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack rows of equal length."""
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
