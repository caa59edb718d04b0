"""Placeholders that stand for matrices in files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prosparse_models import CheckpointError
from prosparse_models.loading.file_weights import Change, FileWeights, _Buffers

W = torch.arange(12, dtype=torch.float32).reshape(3, 4)


@pytest.fixture
def weights(tmp_path: Path) -> FileWeights:
    tensors = {
        "0.weight": W.half(),
        "0.bias": torch.ones(3).half(),
        "1.weight": W.T.contiguous(),
        "n": torch.tensor([7]),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    return FileWeights([tmp_path / "a.safetensors"])


def model(weights: FileWeights) -> nn.Sequential:
    with torch.device("meta"):
        built = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4, bias=False))
    state = {name: value for name, value in weights.state_dict.items() if name != "n"}
    built.load_state_dict(state, assign=True)
    return built


def test_matrices_are_placeholders(weights: FileWeights) -> None:
    placeholder = weights.state_dict["0.weight"]
    assert (tuple(placeholder.shape), placeholder.dtype) == ((3, 4), torch.float32)
    assert placeholder.isnan().all()
    assert placeholder.untyped_storage().nbytes() < W.nbytes
    assert torch.equal(weights.state_dict["0.bias"], torch.ones(3))
    assert torch.equal(weights.state_dict["n"], torch.tensor([7]))
    other = weights.state_dict["1.weight"]
    assert placeholder.view(torch.int32)[0, 0] != other.view(torch.int32)[0, 0]


def test_a_matrix_is_found_by_its_address(weights: FileWeights) -> None:
    found = weights.weight(weights.state_dict["0.weight"].T.data_ptr())
    assert found is not None
    assert (found.name, found.stored.dtype) == ("0.weight", torch.float16)
    assert torch.equal(found.read(), W)
    assert weights.weight(weights.state_dict["0.bias"].data_ptr()) is None


def test_values_and_scales(weights: FileWeights) -> None:
    layer = model(weights)[0]
    assert torch.equal(weights.values(layer.weight), W)
    assert torch.equal(weights.values(layer.bias), torch.ones(3))
    scaled = weights.scale(layer.weight, 0.5)
    assert scaled.isnan().all()
    assert torch.equal(weights.values(scaled), W * 0.5)
    assert torch.equal(weights.values(layer.weight), W)
    assert torch.equal(weights.scale(layer.bias, 0.5), torch.full((3,), 0.5))


def test_a_model_computes_while_it_is_filled(weights: FileWeights) -> None:
    built = model(weights)
    x = torch.ones(1, 4)
    assert built(x).isnan().all()
    expected = (x @ W.T + 1) @ W  # small integers: exact
    with weights.filled(built), torch.no_grad():
        assert torch.equal(built(x), expected)
        assert built[0].weight.isnan().all()  # dropped after the call
    assert built(x).isnan().all()
    paths = []

    def zero(path: str, weight: torch.Tensor, memory: Callable[[torch.Size], torch.Tensor]) -> torch.Tensor:
        paths.append(path)
        return memory(weight.shape).zero_()

    with weights.filled(built, zero), torch.no_grad():
        assert torch.equal(built(x), torch.zeros(1, 4))
    assert paths == ["0.weight", "1.weight"]


@pytest.mark.parametrize(
    "change",
    [lambda _, weight, memory: weight.half(), lambda _, weight, memory: memory(weight.shape).copy_(weight)],
    ids=["narrow", "in the memory given"],
)
def test_memory_of_float32_copies_is_used_again(weights: FileWeights, change: Change) -> None:
    built = model(weights)
    addresses = []
    for layer in built:
        layer.register_forward_hook(lambda layer, *_: addresses.append(layer.weight.data_ptr()))
    with weights.filled(built, change), torch.no_grad():
        built(torch.ones(1, 4))
        built(torch.ones(1, 4))
        assert torch.equal(built(torch.ones(1, 4)), (torch.ones(1, 4) @ W.T + 1) @ W)
    placeholders = {built[0].weight.data_ptr(), built[1].weight.data_ptr()}
    assert len(set(addresses) - placeholders) == 1


def test_memory_in_use_is_not_given_again() -> None:
    buffers = _Buffers()
    one = buffers.empty(torch.Size([4]))
    buffers.give_back(one)
    held, other = buffers.empty(torch.Size([4])), buffers.empty(torch.Size([4]))
    assert held.data_ptr() == one.data_ptr() != other.data_ptr()


def test_an_error_leaves_the_placeholders(weights: FileWeights) -> None:
    built = model(weights)
    with weights.filled(built), pytest.raises(RuntimeError):
        built(torch.ones(1, 5))
    assert built[0].weight.isnan().all()


def test_completeness(weights: FileWeights) -> None:
    built = model(weights)
    assert weights.is_complete(built)
    built[0].weight = nn.Parameter(built[0].weight.detach().clone())  # a copy of the NaN
    assert not weights.is_complete(built)


def test_pickled_files(tmp_path: Path) -> None:
    torch.save({"w": W}, tmp_path / "pytorch_model.bin")
    read = FileWeights([tmp_path / "pytorch_model.bin"])
    assert torch.equal(read.values(nn.Parameter(read.state_dict["w"])), W)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_damaged_matrix_is_named_when_it_is_read(tmp_path: Path, value: float) -> None:
    damaged = W.clone()
    damaged[1, 2] = value
    save_file({"layers.7.weight": damaged, "layers.8.weight": W * 2e37}, tmp_path / "a.safetensors")
    weights = FileWeights([tmp_path / "a.safetensors"])
    stored = {name: weights.weight(tensor.data_ptr()) for name, tensor in weights.state_dict.items()}
    assert stored["layers.8.weight"] is not None
    assert stored["layers.8.weight"].read().isfinite().all()  # finite values whose sum overflows are no damage
    assert stored["layers.7.weight"] is not None
    with pytest.raises(CheckpointError, match=r"layers\.7\.weight: expected finite values, got 1 NaN or Inf of 12"):
        stored["layers.7.weight"].read()


def test_a_damaged_vector_is_named_at_once(tmp_path: Path) -> None:
    save_file({"layers.7.bias": torch.tensor([1.0, float("nan")])}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"layers\.7\.bias: expected finite values"):
        FileWeights([tmp_path / "a.safetensors"])
