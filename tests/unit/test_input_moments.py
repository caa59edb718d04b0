"""Mean squares of the inputs of linear layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from support.families import family

from prosparse_export.export.input_moments import _affordable_tokens, input_moments
from prosparse_export.progress import no_progress
from prosparse_export.text import Document
from prosparse_models import load_checkpoint

CONTEXT = 16


def name_of(model: torch.nn.Module, wanted: torch.nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def test_rows_stay_within_the_context_and_moments_are_those_of_the_inputs(tmp_path: Path) -> None:
    family("OPT").save(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    checkpoint.config["max_position_embeddings"] = CONTEXT
    ids = np.random.default_rng(0).integers(3, 50, 2 * CONTEXT + 5)
    found = input_moments(checkpoint, [Document("a.txt", ids)], no_progress)
    assert found.tokens == 2 * CONTEXT

    model = checkpoint.model
    name, layer = next((n, m) for n, m in model.named_modules() if n.endswith("layers.0.fc1"))
    inputs: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, x: inputs.append(x[0].detach()))
    with torch.no_grad():
        model(input_ids=torch.from_numpy(ids[: 2 * CONTEXT].reshape(2, CONTEXT)))
    handle.remove()
    square = np.concatenate([x.reshape(-1, x.shape[-1]).numpy().astype(np.float64) for x in inputs]) ** 2
    expected = square.mean(0) / square.mean()
    np.testing.assert_allclose(found.by_module[name], expected + 1e-3, rtol=1e-5)


def test_lm_head_is_measured_and_does_not_compute(tmp_path: Path) -> None:
    family("OPT").save(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    head = checkpoint.model.get_output_embeddings()
    name = name_of(checkpoint.model, head)
    computed: list[object] = []
    head.register_forward_hook(lambda *_: computed.append(1))
    found = input_moments(checkpoint, [Document("a.txt", np.arange(3, 40))], no_progress)
    assert found.by_module[name].shape == (head.in_features,)
    assert not computed
    assert checkpoint.model.get_input_embeddings().weight is head.weight
    embedding = name_of(checkpoint.model, checkpoint.model.get_input_embeddings())
    np.testing.assert_array_equal(found.by_module[embedding], found.by_module[name])


def test_small_models_are_measured_on_1024_tokens_and_large_ones_on_256(tmp_path: Path) -> None:
    family("OPT").save(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    assert _affordable_tokens(checkpoint) == 1024
    with torch.device("meta"):
        checkpoint.model.register_parameter("large", torch.nn.Parameter(torch.empty(7_000_000_000)))
    assert _affordable_tokens(checkpoint) == 256
