"""Example inputs of a trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.families import family
from support.layered_graphs import layered
from transformers import DynamicCache

from prosparse_export.errors import ProSparseError
from prosparse_export.export.trace import _check_cache_names, _inputs
from prosparse_models import cache_of, load_checkpoint


@torch.no_grad()
def test_the_example_cache_is_made_without_computing_linear_layers(tmp_path: Path) -> None:
    """Those of a large model take seconds, and only shapes matter."""
    family("OPT").save(tmp_path)
    model = load_checkpoint(tmp_path).model
    expected = cache_of(model(input_ids=torch.zeros(2, 4, dtype=torch.long), use_cache=True))
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.fill_(torch.nan)
    past = next(value for value in _inputs(model).values() if isinstance(value, DynamicCache))
    for layer, wanted in zip(past.layers, expected.layers, strict=True):
        assert layer.keys.shape == wanted.keys.shape
        assert layer.values.shape == wanted.values.shape
        assert layer.keys.isfinite().all()


def test_an_exporter_that_names_the_cache_otherwise_is_refused() -> None:
    model = layered([0, 1])
    _check_cache_names(model)
    model.graph.outputs[1].name = "state.0.keys"
    with pytest.raises(ProSparseError, match=r"^export: outputs .*, 2 and 1 of inputs .*, got y, .*state\.0\.keys"):
        _check_cache_names(model)
    for value in model.graph.inputs[1:]:
        value.name = f"state.{value.name}"
    with pytest.raises(ProSparseError, match=r"^export: inputs .*, 0 and 1 of inputs .*, got x, state\.input"):
        _check_cache_names(model)
