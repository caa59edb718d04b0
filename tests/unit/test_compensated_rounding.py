"""Error-compensating rounding: columns make up for each other's errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.families import family

from graph_passes import Format, WeightRangeError, dequantize, plausible_integers, quantize
from prosparse_export.errors import ProSparseError
from prosparse_export.export import compensated_rounding
from prosparse_export.export.compensated_rounding import NarrowMatrix, compensated_matrices, round_compensating
from prosparse_export.progress import no_progress
from prosparse_export.text import Document
from prosparse_models import load_checkpoint

D_OUT, D_IN, TOKENS = 40, 70, 300  # neither is a multiple of 32


def correlated() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    inputs = torch.randn(TOKENS, D_IN) @ (torch.eye(D_IN) + 0.3 * torch.randn(D_IN, D_IN))
    return torch.randn(D_OUT, D_IN), inputs


def stored(
    weight: torch.Tensor, inputs: torch.Tensor, weights: Format, *, is_down: bool
) -> tuple[NDArray[np.float32], bool]:
    found = round_compensating(weight.clone(), inputs.T @ inputs, weights, is_down=is_down)
    rows = weight.T if is_down else weight
    values = dequantize(found.integers, found.scales, rows.shape[1], weights)
    powers = np.float32(1) if found.powers is None else found.powers
    assert (found.powers is not None) == is_down
    plausible = plausible_integers(rows.contiguous().numpy() / powers, found.integers, found.scales, weights)
    return values * powers, plausible


@pytest.mark.parametrize("weights", ["i4", "nl4"])
@pytest.mark.parametrize("is_down", [False, True])
def test_outputs_are_closer_than_with_nearest_integers(is_down: bool, weights: Format) -> None:
    weight, inputs = correlated()
    rows = (weight.T if is_down else weight).contiguous().numpy()
    moments = inputs.square().mean(0).numpy()
    nearest = dequantize(*quantize(rows, weights, None if is_down else moments), rows.shape[1], weights)
    values, plausible = stored(weight, inputs, weights, is_down=is_down)
    assert plausible

    def error(matrix: NDArray[np.float32]) -> float:
        difference = weight.numpy() - (matrix.T if is_down else matrix)
        return float(np.square(difference @ inputs.numpy().T).mean())

    assert error(values) < 0.7 * error(nearest)


def test_uncorrelated_inputs_give_nearest_integers() -> None:
    weight, _ = correlated()
    found = round_compensating(weight.clone(), torch.eye(D_IN), "i4")
    rows = weight.numpy()
    np.testing.assert_array_equal(found.integers, quantize(rows, "i4", scales=found.scales)[0])
    searched = dequantize(*quantize(rows, "i4"), D_IN, "i4")
    fitted = dequantize(found.integers, found.scales, D_IN, "i4")
    assert np.square(rows - fitted).sum() < np.square(rows - searched).sum()


@pytest.mark.parametrize("weights", ["i4", "nl4"])
def test_inputs_that_never_occur_and_singular_moments_are_rounded(weights: Format) -> None:
    weight, inputs = correlated()
    inputs[:, 3:9] = 0
    values, plausible = stored(weight, inputs[:5], weights, is_down=False)
    assert np.isfinite(values).all()
    assert plausible


def test_moments_that_are_not_finite_give_nearest_integers() -> None:
    weight, inputs = correlated()
    inputs[4, 6] = torch.inf
    found = round_compensating(weight.clone(), inputs.T @ inputs, "i4")
    np.testing.assert_array_equal(found.integers, quantize(weight.numpy(), "i4", scales=found.scales)[0])


def test_inputs_that_are_all_zero_give_nearest_integers() -> None:
    weight, _ = correlated()
    found = round_compensating(weight.clone(), torch.zeros(D_IN, D_IN), "i4")
    np.testing.assert_array_equal(found.integers, quantize(weight.numpy(), "i4", scales=found.scales)[0])


@pytest.mark.parametrize("weights", ["i4", "nl4"])
def test_other_weights_are_not_plausible(weights: Format) -> None:
    weight, inputs = correlated()
    found = round_compensating(weight.clone(), inputs.T @ inputs, weights)
    rows = weight.numpy()
    swapped = found.integers.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert not plausible_integers(rows, swapped, found.scales, weights)
    scales = found.scales.copy()
    scales[5, 1] *= -1
    assert not plausible_integers(rows, found.integers, scales, weights)
    scales[5, 1] *= -2
    assert not plausible_integers(rows, found.integers, scales, weights)
    assert not plausible_integers(rows, found.integers[:, :-1], found.scales, weights)


@pytest.mark.parametrize("weights", ["i4", "nl4"])
def test_nan_is_an_error(weights: Format) -> None:
    weight, inputs = correlated()
    weight[1, 2] = torch.nan
    with pytest.raises(WeightRangeError, match=f"{weights}: expected finite weights"):
        round_compensating(weight, inputs.T @ inputs, weights)


def test_a_model_is_rounded_on_the_inputs_that_rounded_layers_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family("LLaMA (ReluLLaMA)").save(tmp_path)
    document = Document("a.txt", np.random.default_rng(0).integers(3, 50, 512))
    results = []
    caches: list[bool] = []
    for in_files in (False, True):
        checkpoint = load_checkpoint(tmp_path, in_files=in_files)
        before = {name: weight.clone() for name, weight in checkpoint.model.state_dict().items()}
        down = "model.layers.0.mlp.down_proj"
        matrices = {
            "model.layers.0.self_attn.q_proj": NarrowMatrix("i4", False),
            "model.layers.0.mlp.up_proj": NarrowMatrix("nl4", False),
            down: NarrowMatrix("i4", True),
        }
        checkpoint.model.register_forward_pre_hook(
            lambda _, __, options: caches.append(options["use_cache"]), with_kwargs=True
        )
        results.append(compensated_matrices(checkpoint, [document], matrices, no_progress))
        assert all(
            torch.equal(torch.nan_to_num(before[name]), torch.nan_to_num(weight))
            for name, weight in checkpoint.model.state_dict().items()
        )
    one, other = results
    assert caches == [False, False]  # of thousands of tokens, a KV cache takes gigabytes
    assert list(one) == list(matrices)
    assert one[down].is_down
    assert [matrix.weights for matrix in one.values()] == ["i4", "nl4", "i4"]
    for name in matrices:
        np.testing.assert_array_equal(one[name].integers, other[name].integers)

    def fails(*_: object, **__: object) -> None:
        raise WeightRangeError("i4: expected finite weights, got NaN or Inf", hint="use another one")

    monkeypatch.setattr(compensated_rounding, "round_compensating", fails)
    with pytest.raises(ProSparseError, match=r"weights: model.layers.0.self_attn.q_proj: i4: expected finite"):
        compensated_matrices(checkpoint, [document], matrices, no_progress)
