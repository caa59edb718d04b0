"""Checks of a training run that need no model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from prosparse_models import TrainingError
from prosparse_models.training.sparsify_options import check_devices


def test_rejects_several_gpus_in_one_process() -> None:
    check_devices(SimpleNamespace(n_gpu=0))
    check_devices(SimpleNamespace(n_gpu=1))
    with pytest.raises(TrainingError, match="expected one GPU per process, got 2") as caught:
        check_devices(SimpleNamespace(n_gpu=2))
    assert "torchrun --nproc-per-node 2" in str(caught.value.hint)
