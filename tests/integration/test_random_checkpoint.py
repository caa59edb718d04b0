"""The benchmarks' random checkpoints, seen by transformers: with the given sparsity in every layer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT

from prosparse_models import load_checkpoint

pytestmark = pytest.mark.integration
SCRIPT = str(ROOT / "benchmarks" / "random_checkpoint.py")


def write(shape: str, folder: Path, *options: str) -> Path:
    command = [sys.executable, SCRIPT, shape, str(folder), "-q", *options]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.parametrize(("shape", "sparsity"), [("tiny", 0.89), ("tiny", 0.3), ("tiny-opt", 0.97)])
def test_sparsity_is_what_was_asked_for(shape: str, sparsity: float, tmp_path: Path) -> None:
    folder = write(shape, tmp_path / "model", "--sparsity", str(sparsity))
    model = load_checkpoint(folder).model
    layers = model.model.layers if shape == "tiny" else model.model.decoder.layers
    zeros: list[float] = []
    for layer in layers:
        down = layer.mlp.down_proj if shape == "tiny" else layer.fc2
        down.register_forward_pre_hook(lambda _, args: zeros.append((args[0] == 0).float().mean().item()))
    ids = torch.from_numpy(np.random.default_rng(7).integers(3, 4096, (4, 64)))  # not those of the calibration
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    recorded = json.loads((folder / "random_checkpoint.json").read_text())["sparsity"]
    assert len(zeros) == len(recorded) == 3
    # 256 tokens x 1024 neurons: a standard error below 0.1%; d_model 128 lets tokens and neurons differ more.
    np.testing.assert_allclose(zeros, sparsity, atol=0.015)
    np.testing.assert_allclose(recorded, zeros, atol=0.015)
    assert logits.isfinite().all()
    assert len(logits.argmax(-1).unique()) > 100  # tokens differ: the layers neither grow nor fade


def test_same_seed_same_bytes_any_threads(tmp_path: Path) -> None:
    one = write("tiny", tmp_path / "one", "--seed", "3")
    two = write("tiny", tmp_path / "two", "--seed", "3", "--threads", "2")
    other = write("tiny", tmp_path / "other", "--seed", "4")
    read = [folder / "model.safetensors" for folder in (one, two, other)]
    assert read[0].read_bytes() == read[1].read_bytes() != read[2].read_bytes()
