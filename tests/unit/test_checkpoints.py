"""Which training checkpoint a hint names, and that one process has one GPU."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from prosparse_models import TrainingError
from prosparse_models.training.saving import RUN_FILE, complete_checkpoints
from prosparse_models.training.sparsify_options import check_devices
from prosparse_models.training.trainer import last_good


def test_only_what_was_written_to_the_end_is_good(tmp_path: Path) -> None:
    assert last_good(tmp_path / "none") == ""
    for step in (9, 10, 11):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if step != 11:  # interrupted
            (folder / RUN_FILE).write_text("{}")
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert last_good(tmp_path) == f"{tmp_path / 'checkpoint-10'} is good: "


def test_several_gpus_in_one_process_are_refused() -> None:
    check_devices(SimpleNamespace(n_gpu=0))
    check_devices(SimpleNamespace(n_gpu=1))
    with pytest.raises(TrainingError, match="expected one GPU per process, got 2") as caught:
        check_devices(SimpleNamespace(n_gpu=2))
    assert "torchrun --nproc-per-node 2" in str(caught.value.hint)
