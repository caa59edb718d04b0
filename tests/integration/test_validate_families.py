"""Validation of models shaped differently from the demo: intact artifacts pass, faults are named in their layer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers as hf
from click.testing import CliRunner
from onnx import helper
from support.mutations import changed
from support.random_models import SIZES, save_with_tokenizer

from prosparse_export import export_model
from prosparse_export.analysis.ffn_nodes import ffn_nodes
from prosparse_export.cli import main
from prosparse_export.export import ExportOptions
from prosparse_export.text import default_text, tokenize
from prosparse_export.validation import Limits, ValidationOptions, validate
from prosparse_export.validation.explain import explain
from prosparse_export.validation.linear_nodes import are_linear
from prosparse_export.validation.patched_forward import run_patched
from prosparse_export.validation.validation_target import open_target
from prosparse_models.loading.tokenizer import load_tokenizer

pytestmark = pytest.mark.integration
OPTIONS = ValidationOptions(tokens=128, context=64, greedy=8, step_tokens=16, explain=True)
LAYER = 1
WIDTHS = {**SIZES, "hidden_size": 32, "num_hidden_layers": 3}
GROUPED = {**WIDTHS, "intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "hidden_act": "relu"}
FALCON = {
    **WIDTHS,
    "ffn_hidden_size": 64,
    "activation": "relu",
    "alibi": False,
    "new_decoder_architecture": True,
    "num_kv_heads": 2,
}
OPT = {**WIDTHS, "ffn_dim": 64, "activation_function": "relu", "word_embed_proj_dim": 16, "do_layer_norm_before": False}
MODELS: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "parallel attention": lambda: hf.FalconForCausalLM(hf.FalconConfig(**FALCON)),
    "sliding window": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=16)),
    "tied, one rounded": lambda: hf.OPTForCausalLM(hf.OPTConfig(**OPT)),
    "threshold": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
}
FORMATS: dict[str, Any] = {"tied, one rounded": "i4", "threshold": "i4"}


@pytest.fixture(scope="module", params=list(MODELS))
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, demo_folder: Path
) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_with_tokenizer(MODELS[request.param](), folder, demo_folder)
    if request.param == "threshold":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "fatrelu", "hidden_act_param": 0.01}))
    options = ExportOptions(weights=FORMATS.get(request.param))
    return folder, export_model(folder, tmp_path_factory.mktemp("out") / "m.onnx", options).path


def times(model: onnx.ModelProto, name: str, factor: float) -> None:
    """Multiply the output of node ``name``."""
    place = next(i for i, node in enumerate(model.graph.node) if node.name == name)
    node = model.graph.node[place]
    out, node.output[0] = node.output[0], "f.raw"
    value = helper.make_tensor("f.factor", onnx.TensorProto.FLOAT, [], [factor])
    model.graph.node.insert(place + 1, helper.make_node("Constant", [], ["f.factor"], value=value))
    model.graph.node.insert(place + 2, helper.make_node("Mul", ["f.raw", "f.factor"], [out]))


def rename(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [new if name == old else name for name in names]
    for value in model.graph.output:
        value.name = new if value.name == old else value.name


def test_an_intact_artifact_passes_without_findings(exported: tuple[Path, Path]) -> None:
    folder, artifact = exported
    ids = tokenize(load_tokenizer(folder), [("text", default_text())], 48)[0].ids
    target = open_target(folder, artifact)
    for low_memory in (False, True):
        result = validate(folder, artifact, replace(OPTIONS, low_memory=low_memory))
        assert result.passed, [check for check in result.checks if not check.passed]
        assert explain(target.load(low_memory=low_memory), target, ids) == []


def test_a_fault_between_operators_is_named_in_its_layer(exported: tuple[Path, Path], tmp_path: Path) -> None:
    """An FFN's output is 2% off before the next operator reads it."""
    folder, artifact = exported

    def edit(model: onnx.ModelProto) -> None:
        times(model, ffn_nodes(model)[LAYER].module, 1.02)

    result = validate(folder, changed(artifact, tmp_path, edit), OPTIONS)
    assert not result.passed
    assert len(result.findings) == 6
    for finding in result.findings:  # found at the next operator in the graph: the next layer's norm, or this layer's
        assert finding.layer in (LAYER, LAYER + 1), list(map(str, result.findings))
        assert "Normalization" in finding.op or "Add" in finding.op or "ReduceMean" in finding.op, str(finding)


def test_a_failed_limit_is_explained(exported: tuple[Path, Path]) -> None:
    """Also with a cache that transformers trims; by the costs of quantization, if any."""
    folder, artifact = exported
    limits = Limits(max_kl=0.0, min_sparsity=0.999)
    result = validate(folder, artifact, replace(OPTIONS, limits=limits))
    assert (
        {"sparsity"}
        <= {check.name for check in result.checks if not check.passed}
        <= {"sparsity", "mean KL divergence"}
    )
    assert result.findings == ()
    assert bool(result.quantization_costs) == (result.artifact["weights"] == "i4")
    only_sparsity = validate(folder, artifact, replace(OPTIONS, limits=Limits(min_sparsity=0.999)))
    assert bool(only_sparsity.quantization_costs) == (result.artifact["weights"] == "i4")


def test_an_encoder_has_no_logits(tmp_path: Path, demo_folder: Path, demo_artifact: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        rename(model, "logits", "last_hidden_state")

    artifact = changed(demo_artifact, tmp_path, edit)
    done = CliRunner().invoke(main, ["validate", str(demo_folder), str(artifact), "-q"])
    assert done.exit_code == 1
    assert "expected a decoder with logits, got an encoder" in done.stderr
    (artifact.parent / "prosparse.json").unlink()
    done = CliRunner().invoke(main, ["validate", str(demo_folder), str(artifact), "-q"])
    assert done.exit_code == 1
    assert "expected a prosparse.json next to demo.onnx" in done.stderr


class Twice(hf.LlamaForCausalLM):
    """Its first and last layers share one MLP."""

    def __init__(self, config: hf.LlamaConfig) -> None:
        super().__init__(config)
        self.model.layers[2].mlp = self.model.layers[0].mlp


def test_positions_of_gpt2_are_known(tmp_path: Path, demo_folder: Path) -> None:
    sizes = {"vocab_size": 4096, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64, "n_inner": 64}
    model = hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, activation_function="relu"))
    model.save_pretrained(tmp_path / "model")
    for file in demo_folder.glob("token*"):
        shutil.copy(file, tmp_path / "model")
    options = ExportOptions(allow_dense=True, fuse_attention=False)  # its matrices are stored [d_in, d_out]
    artifact = export_model(tmp_path / "model", tmp_path / "out" / "m.onnx", options).path
    result = validate(tmp_path / "model", artifact, replace(OPTIONS, context=512, greedy=200))
    assert result.passed, [check for check in result.checks if not check.passed]
    assert 0 < result.greedy_tokens < 64


def test_a_file_rewritten_by_optimize_is_an_error(tmp_path: Path, demo_folder: Path, demo_artifact: Path) -> None:
    artifact = Path(shutil.copytree(demo_artifact.parent, tmp_path / "out")) / demo_artifact.name
    manifest = json.loads((artifact.parent / "prosparse.json").read_text())
    manifest["source"] = {"kind": "onnx_file", "file": "in.onnx", "sha256": "00", "producer": ""}
    (artifact.parent / "prosparse.json").write_text(json.dumps(manifest))
    done = CliRunner().invoke(main, ["validate", str(demo_folder), str(artifact), "-q"])
    assert done.exit_code == 1
    assert "got a file that prosparse optimize rewrote" in done.stderr


def test_modules_that_run_twice_and_modules_without_a_matrix() -> None:
    """The first run of such a module counts; a module without its own matrix is not a linear layer."""
    torch.manual_seed(0)
    model = Twice(hf.LlamaConfig(**GROUPED)).eval()
    ids = np.arange(3, 20)
    outputs = [np.full((len(ids), 32), 0.5, np.float32), np.zeros((len(ids), 32), np.float32)]
    ffns = [[f"model.layers.{i}.mlp.{name}_proj" for name in ("gate", "up", "down")] for i in (0, 1)]
    seen: list[torch.Tensor] = []
    handle = model.model.layers[0].mlp.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    patched = run_patched(model, ffns, outputs, [], ids)
    handle.remove()
    assert (seen[0] == 0.5).all()
    assert not (seen[1] == 0.5).any()
    embedded = model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.from_numpy(ids[None])))
    assert patched.inputs[0].shape == (len(ids), 32) == embedded[0].shape
    assert are_linear(model, ffns[0])
    assert not are_linear(model, ["model.layers.0.mlp"])
    assert not are_linear(model, [])
