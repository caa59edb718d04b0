"""The caller's activation in place of config.json's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prosparse_models import CheckpointError
from prosparse_models.loading.activation_override import override_activation
from prosparse_models.loading.model_config import ModelConfig

FOLDER = Path("m")


def config(activation: str, threshold: float = 0.0, thresholds: tuple[float, ...] = ()) -> ModelConfig:
    values: dict[str, Any] = {"hidden_act": activation, "hidden_act_param": threshold, "model_type": "llama"}
    return ModelConfig(values, "llama", activation, threshold, thresholds, is_minicpm=False, needs_code=False)


def test_without_an_override_nothing_changes() -> None:
    stated = config("fatrelu", 0.25)
    assert override_activation(FOLDER, stated, None, None) == (stated, {})


@pytest.mark.parametrize(
    ("stated", "activation", "threshold", "used", "new"),
    [
        (config("silu"), "relu", None, "relu", 0.0),
        (config("silu"), "drelu", None, "drelu", 0.0),
        (config("silu"), "fatrelu", 0.5, "fatrelu", 0.5),
        (config("relu"), None, 0.5, "fatrelu", 0.5),  # a threshold makes relu fatrelu
        (config("fatrelu", 0.25), None, 0.5, "fatrelu", 0.5),
        (config("fatrelu", 0.25), None, 0, "fatrelu", 0.0),
        (config("fatrelu", 0.25, (0.25, 0.75)), "fatrelu", None, "fatrelu", 0.25),
        (config("fatrelu", 0.25), "relu", None, "relu", 0.0),
    ],
)
def test_overrides(stated: ModelConfig, activation: str | None, threshold: float | None, used: str, new: float) -> None:
    changed, record = override_activation(FOLDER, stated, activation, threshold)
    assert (changed.activation, changed.threshold, changed.thresholds) == (used, new, ())
    assert changed.values == {"model_type": "llama"}
    assert record["activation"] == {"config": stated.activation, "used": used}
    thresholds = {"config": stated.threshold, "used": new} if used == "fatrelu" else None
    assert record.get("threshold") == thresholds


@pytest.mark.parametrize(
    ("stated", "activation", "threshold", "message"),
    [
        ("silu", None, 0.5, "activation: m: expected one of relu, relu2, fatrelu, drelu, got 'silu'"),
        ("relu", "gelu", None, "activation: m: expected one of relu, relu2, fatrelu, drelu, got 'gelu'"),
        ("relu", "relu2", 0.5, "threshold: m: expected fatrelu, got 'relu2'"),
        ("relu", "fatrelu", -0.5, "threshold: m: expected a finite number >= 0, got -0.5"),
        ("relu", "fatrelu", float("nan"), "threshold: m: expected a finite number >= 0, got nan"),
        ("relu", None, float("inf"), "threshold: m: expected a finite number >= 0, got inf"),
        ("relu", "fatrelu", None, "threshold: m: fatrelu needs a threshold"),
    ],
)
def test_wrong_overrides(stated: str, activation: str | None, threshold: float | None, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        override_activation(FOLDER, config(stated), activation, threshold)
    assert str(caught.value) == message
    assert caught.value.hint
