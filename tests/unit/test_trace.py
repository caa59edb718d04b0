"""Example inputs of a trace."""

from __future__ import annotations

from pathlib import Path

import torch
from support.families import family

from prosparse_export.export.trace import _inputs
from prosparse_models import load_checkpoint


@torch.no_grad()
def test_the_example_cache_is_made_without_computing_linear_layers(tmp_path: Path) -> None:
    """Those of a large model take seconds, and only shapes matter."""
    family("OPT").save(tmp_path)
    model = load_checkpoint(tmp_path).model
    expected = model(input_ids=torch.zeros(2, 4, dtype=torch.long), use_cache=True).past_key_values
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.fill_(torch.nan)
    past = _inputs(model)["past_key_values"]
    for layer, wanted in zip(past.layers, expected.layers, strict=True):
        assert layer.keys.shape == wanted.keys.shape
        assert layer.values.shape == wanted.values.shape
        assert layer.keys.isfinite().all()
