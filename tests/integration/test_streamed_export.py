"""Weights that stay in their files until they are written, operators outside the FFNs, files that are checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from prosparse_export import ExportOptions, ProSparseError, export_model, load
from prosparse_export.artifact.manifest import require_manifest
from prosparse_export.export.lazy_initializers import place_weights
from prosparse_export.validation import ValidationOptions, validate
from prosparse_models import FileWeights, load_checkpoint

TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """A small LLaMA in float16, in shards, with tied embeddings, nearly all neurons of its first FFN active."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        hidden_act="relu",
        mlp_bias=True,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.bias.fill_(0.4)
        model.model.embed_tokens.weight.mul_(20.0)
    path = tmp_path_factory.mktemp("streamed") / "m"
    model.half().save_pretrained(path, max_shard_size="200KB")
    for name in TOKENIZER:
        shutil.copyfile(demo_folder / name, path / name)
    assert len(list(path.glob("*.safetensors"))) > 1
    return path


@pytest.fixture(scope="module")
def i4(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_model(folder, tmp_path_factory.mktemp("i4") / "m.onnx", ExportOptions(weights="i4")).path


def test_placeholders_take_no_memory_and_compute_what_the_model_does(folder: Path) -> None:
    checkpoint = load_checkpoint(folder, in_files=True)
    assert checkpoint.weights is not None
    matrices = [p for p in checkpoint.model.parameters() if p.ndim > 1]
    assert len(matrices) == 1 + 2 * 7
    for parameter in matrices:
        assert parameter.untyped_storage().nbytes() <= 4 * 2 * sum(parameter.shape)
    ids = torch.arange(24)[None]
    expected = load_checkpoint(folder).model(input_ids=ids).logits
    with checkpoint.weights.filled(checkpoint.model):
        assert torch.equal(checkpoint.model(input_ids=ids).logits, expected)
    assert checkpoint.model(input_ids=ids).logits.isnan().all()  # and nothing stays


def test_a_forward_that_fails_leaves_placeholders(folder: Path) -> None:
    checkpoint = load_checkpoint(folder, in_files=True)
    assert checkpoint.weights is not None
    with checkpoint.weights.filled(checkpoint.model), pytest.raises(IndexError):
        checkpoint.model(input_ids=torch.tensor([[99999]]))
    assert checkpoint.weights.is_complete(checkpoint.model)
    assert checkpoint.model.get_input_embeddings().weight.isnan().all()


def test_what_was_computed_from_a_placeholder_is_named(folder: Path) -> None:
    weights = FileWeights(sorted(folder.glob("*.safetensors")))
    name = "model.layers.0.mlp.up_proj.weight"
    placeholder = weights.state_dict[name]

    def graph(array: np.ndarray) -> ir.Graph:
        value = ir.Value(name="w", const_value=ir.tensor(array, name="w"))
        return ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 20})

    whole = graph(placeholder.numpy().T)
    assert place_weights(whole, weights) == ""
    stored = load_checkpoint(folder).model.get_parameter(name).detach().numpy()
    tensor = whole.initializers["w"].const_value
    assert tensor is not None
    np.testing.assert_array_equal(tensor.numpy(), stored.T)
    assert place_weights(graph(placeholder.numpy() + 1.0), weights) == "w"
    assert place_weights(graph(placeholder.numpy()[:8]), weights) == "w"
    assert place_weights(graph(np.ones((2, 2), np.float32)), weights) == ""


def test_matrices_outside_the_ffns_are_stored_once_in_the_format(i4: Path) -> None:
    model = onnx.load(i4, load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("LinearI4") == 2 * 2  # q_proj and k_proj, o_proj
    assert kinds.count("LinearI8") == 2 + 1  # v_proj, lm_head
    assert kinds.count("SparseGatedFFNI4") == 2
    assert kinds.count("MatMul") <= 1  # the rotary angles
    head = next(node for node in model.graph.node if node.name == "lm_head")
    rows = [node for node in model.graph.node if node.op_type == "Gather" and node.input[0] == head.input[1]]
    assert len(rows) == 1  # the embedding reads what lm_head multiplies with
    assert max(np.prod(t.dims) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT) <= 4096


def test_other_weights(folder: Path, tmp_path: Path) -> None:
    options = ExportOptions(weights="i4", other_weights="f32")
    model = onnx.load(export_model(folder, tmp_path / "m.onnx", options).path, load_external_data=False)
    kinds = {node.op_type for node in model.graph.node}
    assert "SparseGatedFFNI4" in kinds
    assert not any(kind.startswith("Linear") for kind in kinds)


@pytest.mark.parametrize("library", [True, False])
def test_logits_of_the_last_positions_alone(i4: Path, library: bool) -> None:
    model = load(i4, library=library)
    ids = np.arange(2 * 9).reshape(2, 9)
    mask = np.ones_like(ids)
    mask[0, :3] = 0
    whole, cache = model.forward(ids, mask)
    feeds = {"input_ids": ids, "attention_mask": mask, "position_ids": np.maximum(mask.cumsum(-1) - 1, 0)}
    empty = {name: value[:, :, :0] for name, value in cache.values.items()}
    for keep in (1, 4, 0):
        part = model.session.run(["logits"], {**feeds, **empty, "logits_to_keep": np.array([keep])})[0]
        assert part.shape[1] == (keep or 9)
        np.testing.assert_allclose(part, whole[:, -keep:], rtol=0, atol=1e-4 * np.abs(whole).max())


def test_low_memory_has_the_rounded_weights_too(folder: Path, i4: Path) -> None:
    results = [
        validate(folder, i4, ValidationOptions(tokens=64, step_tokens=16, greedy=8, low_memory=low))
        for low in (False, True)
    ]
    usual, low = results
    assert low.exact_against == "PyTorch with the stored weights"
    assert low.comparisons == usual.comparisons
    assert low.operators == usual.operators
    assert len(low.operators) == 2 * (1 + 3) + 1  # FFN; q with k, v in 8 bits, o; lm_head
    assert low.passed


def test_calibration_leaves_ffns_dense_that_gain_nothing(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The city lies on a river. " * 40)
    result = export_model(folder, tmp_path / "out" / "m.onnx", ExportOptions(profile_texts=(text,)))
    assert [o.layer for o in result.rewritten] == [1]
    assert "% of its neurons are inactive: a speedup of at most 1.0" in result.not_rewritten[0].reason
    assert "does not pay" in result.not_rewritten[0].reason
    predicted = require_manifest(result.path).predicted_speedup
    assert predicted is not None
    assert predicted == result.manifest.predicted_speedup
    first, second = predicted.layers
    assert first.sparsity < 0.07
    assert first.speedup == 1.0
    active = 1.0 - second.sparsity
    assert 0.2 < active < 0.8
    assert second.speedup == pytest.approx(3 / (1 + 2 * active))
    assert 1.0 < predicted.decode_speedup < second.speedup
    kinds = [n.op_type for n in onnx.load(result.path, load_external_data=False).graph.node]
    assert kinds.count("LinearF16") == 2 * 2 + 1 + 3  # the dense FFN's too


def test_files_are_checked(i4: Path, tmp_path: Path) -> None:
    def copy(name: str) -> Path:
        shutil.copytree(i4.parent, tmp_path / name)
        return tmp_path / name / "m.onnx"

    load(i4, verify=True)
    missing, cut, other, graph = copy("missing"), copy("cut"), copy("other"), copy("graph")
    data = missing.with_name("m.onnx.data")
    data.unlink()
    with pytest.raises(ProSparseError, match=r"m\.onnx\.data: no such file \(expected [\d,]+ bytes of weights"):
        load(missing)
    data = cut.with_name("m.onnx.data")
    data.write_bytes(data.read_bytes()[:-4096])
    with pytest.raises(ProSparseError, match=r"m\.onnx\.data: expected [\d,]+ bytes, got [\d,]+"):
        load(cut)
    data = other.with_name("m.onnx.data")
    contents = bytearray(data.read_bytes())
    contents[len(contents) // 2] ^= 1
    data.write_bytes(contents)
    load(other)  # the right size: only reading all of it tells
    with pytest.raises(ProSparseError, match="expected SHA-256"):
        load(other, verify=True)
    graph.write_bytes(graph.read_bytes().replace(b"LinearI4", b"LinearI8"))
    with pytest.raises(ProSparseError, match="expected SHA-256"):
        load(graph, verify=True)
