"""Recipes: loading, overriding, and errors in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from prosparse_models import TrainingError
from prosparse_models.training.recipe import load_recipe, override, recipe_names

GOOD = "stages = [{ lambda = 0.0, last_step = 5 }, { lambda = 1e-3, last_step = 9 }]\n"


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text)
    return str(path)


def test_packaged_recipes_load() -> None:
    assert recipe_names() == ["demo", "prosparse-13b", "prosparse-1b", "prosparse-7b", "trial"]
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.description
        assert recipe.stages[0][0] == 0.0
    tokens = {n: load_recipe(n).training.sequences_per_step * load_recipe(n).training.context for n in recipe_names()}
    assert tokens["prosparse-7b"] == 2_097_152  # 10.49 B / 5,000 steps
    assert tokens["prosparse-13b"] == 8_388_608  # 46.14 B / 5,500
    assert tokens["prosparse-1b"] == 4_915_200  # 49.15 B / 10,000


def test_every_value_can_be_overridden(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    settings = ["training.learning_rate=1e-4", "training.precision=float32", "distillation.logit_weight=0.5"]
    settings += ["activation=fatrelu", "threshold=0.1", "l1_scale=2", "name=other", "training.seed=7"]
    changed = override(recipe, settings, [(0.0, 3), (2.0, 4)])
    assert (changed.training.learning_rate, changed.training.precision, changed.training.seed) == (1e-4, "float32", 7)
    assert (changed.activation, changed.threshold, changed.l1_scale, changed.name) == ("fatrelu", 0.1, 2.0, "other")
    assert changed.distillation.logit_weight == 0.5
    assert changed.stages == ((0.0, 3), (2.0, 4))
    assert changed.steps == 4
    assert recipe.training.learning_rate == 3e-5
    assert override(recipe, []) == recipe


INVALID = {
    "unsorted marks": (GOOD.replace("9", "4"), "stage 1: last_step: expected more than 5, got 4"),
    "unknown key": (GOOD + "stagess = 1", "unknown key stagess"),
    "unknown key in a table": (GOOD + "[training]\nlearning_rat = 1e-3", "unknown key training.learning_rat"),
    "unknown key in a stage": (GOOD.replace("last_step", "last"), "unknown key stages[0].last"),
    "no stages": ("activation = 'relu'", "stages: expected a list of stages, got None"),
    "empty stages": ("stages = []", "stages: expected a list of stages"),
    "text for a number": (GOOD + "[training]\nlearning_rate = '1e-3'", "learning_rate: expected float, got '1e-3'"),
    "a float for an integer": (GOOD + "[training]\nseed = 1.5", "seed: expected int, got 1.5"),
    "a truth value for an integer": (GOOD + "[training]\nseed = true", "seed: expected int, got True"),
    "negative lambda": (GOOD.replace("1e-3", "-1.0"), "stage 1: lambda: expected a finite number >= 0"),
    "infinite lambda": (GOOD.replace("1e-3", "inf"), "stage 1: lambda: expected a finite number >= 0"),
    "unknown activation": (GOOD + "activation = 'silu'", "activation: expected one of relu, relu2"),
    "threshold without fatrelu": (GOOD + "threshold = 0.1", "threshold: expected >= 0, and 0 unless"),
    "odd batches": (GOOD + "[training]\nmicro_batch = 3", "expected a multiple of micro_batch"),
    "not TOML": ("stages = [", "expected TOML"),
    "a number for a table": (GOOD + "training = 3", "training: expected a table, got 3"),
}


@pytest.mark.parametrize(("text", "message"), INVALID.values(), ids=INVALID)
def test_rejects(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(TrainingError) as caught:
        load_recipe(path)
    assert message in str(caught.value)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("training.seed", "expected KEY=VALUE"),
        ("training.speed=1", "unknown key training.speed"),
        ("nothing.seed=1", "unknown key nothing"),
        ("training.seed=x", "training.seed: expected int, got 'x'"),
    ],
)
def test_rejects_overrides(setting: str, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        override(load_recipe("demo"), [setting])


def test_no_such_recipe() -> None:
    with pytest.raises(TrainingError, match="no such file; included recipes"):
        load_recipe("prosparse-70b")


def test_a_close_name_is_hinted(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        load_recipe(write(tmp_path, GOOD + "[training]\nlearningrate = 1e-3"))
    assert caught.value.hint == "did you mean training.learning_rate?"
