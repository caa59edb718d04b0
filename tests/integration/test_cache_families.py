"""8-bit KV caches where attention differs from the demo's: windows, norms on q and k, RoPE on part of a head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
import transformers as hf
from support.random_models import SIZES, save_with_tokenizer

from graph_passes.quantize_kv_cache import rotated_dims
from prosparse_export import export_model
from prosparse_export.export import ExportOptions
from prosparse_export.validation import ValidationOptions, validate

pytestmark = pytest.mark.integration
OPTIONS = ValidationOptions(tokens=128, context=64, greedy=8, step_tokens=16)
HEAD_DIM = 16
WIDTHS = {**SIZES, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 64}
GROUPED = {**WIDTHS, "num_key_value_heads": 2, "head_dim": HEAD_DIM}
GEMMA = {**GROUPED, "hidden_activation": "relu", "sliding_window": 16}
MODELS: dict[str, tuple[Callable[[], hf.PreTrainedModel], int]] = {  # and the elements of a head that RoPE rotates
    "window": (
        lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, hidden_act="relu", sliding_window=16)),
        HEAD_DIM,
    ),
    "norms": (lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, hidden_act="relu")), HEAD_DIM),
    "windows in some layers": (
        lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GEMMA, layer_types=["sliding_attention", "full_attention"])),
        HEAD_DIM,
    ),
    "partial": (
        lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**WIDTHS, hidden_act="relu", rotary_pct=0.5)),
        HEAD_DIM // 2,
    ),
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, demo_folder: Path
) -> tuple[Path, int]:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    build, rotated = MODELS[request.param]
    save_with_tokenizer(build(), folder, demo_folder)
    return folder, rotated


@pytest.mark.parametrize("cache", ["i8", "i8-token"])
def test_validate_passes(cache: Any, model: tuple[Path, int], tmp_path: Path) -> None:
    folder, rotated = model
    path = export_model(folder, tmp_path / "m.onnx", ExportOptions(kv_cache=cache)).path
    if cache == "i8":  # whose scales are the same for both elements of a rotated pair
        assert set(rotated_dims(ir.load(path).graph).values()) == {rotated}
    result = validate(folder, path, OPTIONS)
    assert result.passed, [check for check in result.checks if not check.passed]
