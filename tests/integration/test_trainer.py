"""The loss counts tokens, not batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.training_runs import RECIPE, assert_same_records

from prosparse_models import find_ffns, load_checkpoint, substitute_activation
from prosparse_models.training.recipe import override
from prosparse_models.training.trainer import ProSparseTrainer, collate, training_arguments

pytestmark = pytest.mark.integration


def losses(
    silu_folder: Path, rows: list[dict[str, torch.Tensor]], micro_batch: int, folder: Path
) -> list[dict[str, Any]]:
    model = load_checkpoint(silu_folder).model
    ffns = find_ffns(model)
    substitute_activation(model, ffns, "relu")
    recipe = override(RECIPE, [f"training.micro_batch={micro_batch}", "training.seed=0"], [(2e-3, 4)])
    arguments = training_arguments(recipe, str(folder), logging_steps=1, use_cpu=True, dataloader_num_workers=0)
    arguments.train_sampling_strategy = "sequential"
    trainer = ProSparseTrainer(model, ffns, recipe, arguments, rows)
    trainer.data_collator = collate
    trainer.train()
    return [r for r in trainer.state.log_history if "lambda" in r]


def test_accumulation_and_padding_count_for_nothing(silu_folder: Path, tmp_path: Path) -> None:
    """Rows of unequal length: 4 micro-batches of 1, or 1 of 4, or the same with more padding: one loss."""
    generator = torch.Generator().manual_seed(3)

    def rows(width: int) -> list[dict[str, torch.Tensor]]:
        made = []
        generator.manual_seed(3)
        for index in range(16):
            length = 6 + 5 * (index % 4)
            ids = torch.full((width,), 2)
            ids[:length] = torch.randint(3, 259, (length,), generator=generator)
            mask = (torch.arange(width) < length).long()
            made.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)})
        return made

    expected = losses(silu_folder, rows(24), 4, tmp_path / "a")
    assert len(expected) == 4
    assert_same_records(losses(silu_folder, rows(24), 1, tmp_path / "b"), expected, rtol=1e-6)
    assert_same_records(losses(silu_folder, rows(40), 2, tmp_path / "c"), expected, rtol=1e-6)
    for record in expected:
        assert record["loss"] == pytest.approx(record["cross_entropy"] + 2e-3 * record["l1"], rel=1e-6)
