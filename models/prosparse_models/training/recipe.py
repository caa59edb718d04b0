"""Recipes: all settings of a training run, read from TOML, validated, and overridden by name."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_type_hints

from prosparse_models.errors import TrainingError
from prosparse_models.loading.substitution import ACTIVATIONS
from prosparse_models.training.schedule import check_stages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["Distillation", "Recipe", "Training", "load_recipe", "override", "recipe_names"]

_FOLDER = Path(__file__).parent.parent / "recipes"


@dataclass(frozen=True)
class Training:
    """Optimizer and batch settings.

    Attributes:
        context: tokens per sequence.
        sequences_per_step: sequences per optimizer step, over all processes and micro-batches.
        micro_batch: sequences per forward pass and process.
        learning_rate: AdamW's peak learning rate.
        final_learning_rate: end of the cosine decay, as a fraction of the peak, 0 to 1.
        warmup_steps: optimizer steps of linear warm-up.
        weight_decay: AdamW's weight decay, for matrices.
        adam_beta1: AdamW's beta1.
        adam_beta2: AdamW's beta2.
        max_grad_norm: gradient clipping norm.
        precision: float32, or autocast to bfloat16 or float16. Losses are always float32.
        gradient_checkpointing: recompute activations in backward: less memory, about a third more time.
        seed: seed of the text order.
    """

    context: int = 2048
    sequences_per_step: int = 64
    micro_batch: int = 1
    learning_rate: float = 3e-5
    final_learning_rate: float = 0.1
    warmup_steps: int = 100
    weight_decay: float = 0.1
    adam_beta1: float = 0.9
    adam_beta2: float = 0.95
    max_grad_norm: float = 1.0
    precision: str = "bfloat16"
    gradient_checkpointing: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Distillation:
    """Distillation from the dense original, for small token budgets. Off by default; not in the paper.

    Attributes:
        layer_steps: steps before step 1 that regress each FFN's output on the original FFN's output for the same input.
        layer_learning_rate: learning rate of those steps.
        logit_weight: weight w of the original's logits in the loss: (1 - w) CE + w T^2 KL.
        temperature: T in that loss.
    """

    layer_steps: int = 0
    layer_learning_rate: float = 1e-3
    logit_weight: float = 0.0
    temperature: float = 1.0


@dataclass(frozen=True)
class Recipe:
    """A training run: docs/guides/train.md explains each setting.

    Attributes:
        name: name of the run in its records.
        description: source of the numbers.
        activation: see `substitute_activation`.
        threshold: FATReLU t during training (fatrelu only).
        l1_scale: factor of lambda; see `ActivationL1`.
        stages: (lambda, last_step) pairs, stage 0 first; see `l1_coefficient`.
        training: optimizer and batch settings.
        distillation: distillation settings.
    """

    name: str
    stages: tuple[tuple[float, int], ...]
    description: str = ""
    activation: str = "relu"
    threshold: float = 0.0
    l1_scale: float = 1.0
    training: Training = field(default_factory=Training)
    distillation: Distillation = field(default_factory=Distillation)

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return self.stages[-1][1]

    def as_dict(self) -> dict[str, Any]:
        """Return a dictionary for JSON, with stages as [lambda, last_step] lists."""
        values = asdict(self)
        values["stages"] = [list(stage) for stage in self.stages]
        return values


def recipe_names() -> list[str]:
    """Return the names of the included recipes."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load_recipe(name_or_path: str) -> Recipe:
    """Read a recipe: a name of `recipe_names`, or a path to a TOML file.

    Raises:
        TrainingError: the file is missing or not TOML, a key is unknown, or a value is invalid.
    """
    path = _FOLDER / f"{name_or_path}.toml" if name_or_path in recipe_names() else Path(name_or_path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TrainingError(
            f"recipe: {name_or_path}: no such file; included recipes: {', '.join(recipe_names())}",
            hint="write one: docs/guides/train.md lists the keys",
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"recipe: {path}: expected TOML, got {error}", hint="correct that line") from error
    values.setdefault("name", path.stem)
    return _recipe(values, str(path))


def override(recipe: Recipe, settings: Sequence[str], stages: Sequence[tuple[float, int]] = ()) -> Recipe:
    """Return ``recipe`` with ``settings`` ("training.learning_rate=1e-4") and, if given, other stages.

    Raises:
        TrainingError: a key is unknown or a value is invalid.
    """
    values = recipe.as_dict()
    for setting in settings:
        key, equals, raw = setting.partition("=")
        if not equals:
            raise TrainingError(f"--set {setting}: expected KEY=VALUE", hint="for example --set training.seed=1")
        table, parts = values, key.strip().split(".")
        for part in parts[:-1]:
            inner = table.get(part)
            table = inner if isinstance(inner, dict) else table.setdefault(part, {})
        try:
            table[parts[-1]] = tomllib.loads(f"value = {raw}")["value"]
        except tomllib.TOMLDecodeError:
            table[parts[-1]] = raw.strip()
    if stages:
        values["stages"] = [list(stage) for stage in stages]
    return _recipe(values, "command line")


def _recipe(values: Mapping[str, Any], where: str) -> Recipe:
    stages = values.get("stages")
    if not isinstance(stages, list) or not stages:
        raise TrainingError(f"recipe: {where}: stages: expected a list of stages, got {stages!r}", hint=_STAGES_HINT)
    pairs = tuple(_stage(stage, index, where) for index, stage in enumerate(stages))
    parts: dict[str, Any] = {"stages": pairs}
    for name, kind in (("training", Training), ("distillation", Distillation)):
        table = values.get(name, {})
        if not isinstance(table, dict):
            raise TrainingError(f"recipe: {where}: {name}: expected a table, got {table!r}", hint=f"write [{name}]")
        parts[name] = kind(**_fields(table, kind, f"{name}.", where))
    others = {key: value for key, value in values.items() if key not in parts}
    recipe = replace(Recipe(name="", **parts), **_fields(others, Recipe, "", where))
    _check(recipe, where)
    return recipe


_STAGES_HINT = "add [[stages]] tables, each with lambda and last_step, for example lambda = 0.0 and last_step = 100"


def _stage(stage: Any, index: int, where: str) -> tuple[float, int]:
    if isinstance(stage, dict):
        _known(stage, ["lambda", "last_step"], f"stages[{index}].", where)
        stage = [stage.get("lambda"), stage.get("last_step")]
    good = isinstance(stage, list | tuple) and len(stage) == 2 and _is(stage[0], float) and _is(stage[1], int)
    if not good:
        raise TrainingError(
            f"recipe: {where}: stages[{index}]: expected lambda (number) and last_step (integer), got {stage!r}",
            hint=_STAGES_HINT,
        )
    return float(stage[0]), int(stage[1])


def _fields(values: Mapping[str, Any], kind: type, prefix: str, where: str) -> dict[str, Any]:
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    _known(values, names, prefix, where)
    for key, value in values.items():
        if not _is(value, hints[key]):
            raise TrainingError(
                f"recipe: {where}: {prefix}{key}: expected {hints[key].__name__}, got {value!r}",
                hint="quote text; do not quote numbers",
            )
    return {key: hints[key](value) for key, value in values.items()}


def _known(values: Mapping[str, Any], names: Sequence[str], prefix: str, where: str) -> None:
    for key in values:
        if key not in names:
            close = difflib.get_close_matches(key, names, 1)
            raise TrainingError(
                f"recipe: {where}: unknown key {prefix}{key}: expected one of {', '.join(names)}",
                hint=f"did you mean {prefix}{close[0]}?" if close else "docs/guides/train.md lists the keys",
            )


def _is(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _check(recipe: Recipe, where: str) -> None:
    try:
        check_stages(recipe.stages)
    except ValueError as error:
        raise TrainingError(f"recipe: {where}: {error}", hint="last_step must increase; it counts all steps") from error
    t, d = recipe.training, recipe.distillation
    conditions = {
        f"activation: expected one of {', '.join(ACTIVATIONS)}, got {recipe.activation}": recipe.activation
        in ACTIVATIONS,
        f"threshold: expected >= 0, and 0 unless activation is fatrelu, got {recipe.threshold}": recipe.threshold >= 0
        and (recipe.threshold == 0 or recipe.activation == "fatrelu"),
        f"l1_scale: expected > 0, got {recipe.l1_scale}": 0 < recipe.l1_scale < float("inf"),
        f"training.context: expected >= 2, got {t.context}": t.context >= 2,
        f"training.micro_batch: expected >= 1, got {t.micro_batch}": t.micro_batch >= 1,
        f"training.sequences_per_step: expected a multiple of micro_batch ({t.micro_batch}), "
        f"got {t.sequences_per_step}": t.sequences_per_step >= 1 and t.sequences_per_step % max(t.micro_batch, 1) == 0,
        f"training.learning_rate: expected > 0, got {t.learning_rate}": 0 < t.learning_rate < float("inf"),
        f"training.final_learning_rate: expected 0 to 1, got {t.final_learning_rate}": 0 <= t.final_learning_rate <= 1,
        f"training.max_grad_norm: expected > 0, got {t.max_grad_norm}": t.max_grad_norm > 0,
        f"training.precision: expected float32, bfloat16 or float16, got {t.precision}": t.precision
        in ("float32", "bfloat16", "float16"),
        f"distillation.logit_weight: expected 0 to 1, got {d.logit_weight}": 0 <= d.logit_weight <= 1,
        f"distillation.temperature: expected > 0, got {d.temperature}": d.temperature > 0,
        f"distillation.layer_steps: expected >= 0, got {d.layer_steps}": d.layer_steps >= 0,
    }
    for message, holds in conditions.items():
        if not holds:
            raise TrainingError(f"recipe: {where}: {message}", hint="docs/guides/train.md explains each key")
