"""Deliberate faults in stored weights: validate names the initializer, even if no logit shows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from support.mutations import LAYER, assert_named, attention, busiest, change_weight, changed, check, failed, ffn_node

from prosparse_export.analysis.activation_counts import measure_activity
from prosparse_export.text import default_text
from prosparse_export.validation import Limits, as_text
from prosparse_export.validation.explain import explain
from prosparse_export.validation.validation_target import open_target
from prosparse_models.loading.tokenizer import load_tokenizer

pytestmark = pytest.mark.integration
HEAD_COUNTS = ("num_heads", "kv_num_heads")


def test_neuron_dropped(demo_folder: Path, demo_artifact: Path, tmp_path: Path) -> None:
    neuron = busiest(demo_artifact, demo_folder)

    def edit(model: onnx.ModelProto) -> None:
        change_weight(model, ffn_node(model).input[5], lambda w: w.__setitem__(neuron, 0))

    result = check(demo_folder, changed(demo_artifact, tmp_path, edit))
    assert_named(result, LAYER, "SparseGatedFFNBF16")
    assert {f.token >= 0 for f in result.findings} == {True, False}  # by its weights and by what it computes


def test_neuron_dropped_that_the_text_never_uses(demo_folder: Path, demo_artifact: Path, tmp_path: Path) -> None:
    """Logits do not show it, the comparison of weights does."""

    def edit(model: onnx.ModelProto) -> None:
        activity = measure_activity(demo_artifact, [np.arange(3, 163)])
        unused = int(activity.layers[LAYER].per_neuron.argmin())
        change_weight(model, ffn_node(model).input[5], lambda w: w.__setitem__((unused, 0), 0))

    assert_named(check(demo_folder, changed(demo_artifact, tmp_path, edit)), LAYER, "SparseGatedFFNBF16")


@pytest.mark.parametrize(("scales", "name"), [(2, "gate_proj.weight.nl4"), (8, "down_proj.weight_t.i8")])
def test_one_wrong_scale(scales: int, name: str, demo_folder: Path, demo_nl4i8: Path, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        change_weight(model, ffn_node(model).input[scales], lambda s: s.__setitem__((5, 1), s[5, 1] * np.float16(1.25)))

    result = check(demo_folder, changed(demo_nl4i8, tmp_path, edit))
    assert_named(result, LAYER, "SparseGatedFFNNL4I8")
    assert result.findings[0].run.endswith(name)


def test_one_wrong_power_of_an_output(demo_folder: Path, demo_nl4i8: Path, tmp_path: Path) -> None:
    """Half of one output of down_proj, which the integers alone do not show."""

    def edit(model: onnx.ModelProto) -> None:
        name = next(n.input[1] for n in model.graph.node if n.name == f"{ffn_node(model).name}.scale_outputs")
        change_weight(model, name, lambda p: p.__setitem__(7, p[7] / 4))

    result = check(demo_folder, changed(demo_nl4i8, tmp_path, edit))
    assert_named(result, LAYER, "SparseGatedFFNNL4I8")
    assert "down_proj.weight_t.i8_power" in {f.run.rpartition(" ")[2].rpartition("mlp.")[2] for f in result.findings}


def test_one_wrong_scale_outside_the_ffns(demo_folder: Path, demo_nl4i8: Path, tmp_path: Path) -> None:
    """In attention's output projection: the integers are not the nearest ones for it."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.name == f"model.layers.{LAYER}.self_attn.o_proj")
        change_weight(model, node.input[2], lambda s: s.__setitem__((5, 1), s[5, 1] * np.float16(1.25)))

    result = check(demo_folder, changed(demo_nl4i8, tmp_path, edit))
    assert_named(result, LAYER, "LinearNL4")
    assert result.findings[0].run.endswith("o_proj.weight.nl4")


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
def test_one_wrong_scale_in_packed_projections(part: str, demo_folder: Path, demo_nl4i8: Path, tmp_path: Path) -> None:
    packed = f"model.layers.{LAYER}.self_attn.q_proj+k_proj+v_proj"

    def edit(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.name == packed)
        heads, kv_heads = (next(a.i for a in attention(model).attribute if a.name == n) for n in HEAD_COUNTS)
        rows = next(tuple(t.dims) for t in model.graph.initializer if t.name == node.input[2])[0]
        each = rows // (heads + 2 * kv_heads)
        row = {"q_proj": 0, "k_proj": heads, "v_proj": heads + kv_heads}[part] * each + 1
        change_weight(model, node.input[2], lambda s: s.__setitem__((row, 1), s[row, 1] * np.float16(1.25)))

    result = check(demo_folder, changed(demo_nl4i8, tmp_path, edit))
    assert_named(result, LAYER, "LinearNL4")
    assert result.findings[0].run.endswith(f"{packed}.weight.nl4")


@pytest.mark.parametrize("fault", ["cos", "sin", "fewer rows than positions"])
def test_wrong_rope_cache_beyond_the_text(fault: str, demo_folder: Path, demo_artifact: Path, tmp_path: Path) -> None:
    caches = {f"prosparse.rotary_{each}.0" for each in ("cos", "sin")}
    wrong = {f"prosparse.rotary_{fault}.0"} if fault in ("cos", "sin") else caches

    def one_angle(model: onnx.ModelProto) -> None:
        (name,) = wrong
        change_weight(model, name, lambda t: t.__setitem__((-1, 2), np.nextafter(t[-1, 2], np.float32(2))))

    def shorten(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            if tensor.name in caches:
                rows = numpy_helper.to_array(tensor)[:200].copy()
                tensor.CopyFrom(numpy_helper.from_array(rows, tensor.name))

    edit = shorten if wrong == caches else one_angle
    result = check(demo_folder, changed(demo_artifact, tmp_path, edit), explain=False)
    assert failed(result) == ["stored weights"]
    assert result.stored_weights is not None
    assert set(result.stored_weights.wrong) == wrong


def test_one_wrong_number_of_a_norm(demo_folder: Path, demo_nl4i8: Path, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        change_weight(model, f"model.layers.{LAYER}.input_layernorm.weight", lambda w: w.__setitem__(3, w[3] * 1.001))

    result = check(demo_folder, changed(demo_nl4i8, tmp_path, edit))
    assert failed(result) == ["stored weights"]
    assert {finding.layer for finding in result.findings} == {LAYER}
    assert result.findings[0].op == "initializer"
    assert result.quantization_costs == ()  # what is not exact is not a matter of quantization


def test_quantization_cost_is_named_by_part(demo_folder: Path, demo_nl4i8: Path) -> None:
    """Only a limit on quality fails: there are no findings, but costs by part of the model."""
    result = check(demo_folder, demo_nl4i8, limits=Limits(max_kl=1e-3))
    assert failed(result) == ["mean KL divergence"]
    assert result.findings == ()
    whole, *parts = result.quantization_costs
    names = {part.module for part in parts}
    layers = {f"model.layers.{i}.{name}" for i in range(5) for name in ("mlp", "self_attn")}
    assert names == {*layers, "model.embed_tokens and lm_head"}
    assert whole.kl > parts[0].kl > parts[-1].kl > 0
    assert result.quality[1].kl_mean == pytest.approx(whole.kl, rel=0.5)  # the costs are of the first 96 tokens alone
    assert f"{parts[0].module} {parts[0].how} {parts[0].kl:.2e}" in [
        " ".join(line.split()) for line in as_text(result).splitlines()
    ]


def test_quantization_cost_of_an_artifact_that_passes(demo_folder: Path, demo_nl4i8: Path) -> None:
    result = check(demo_folder, demo_nl4i8)
    assert result.passed
    assert result.quantization_costs[0].kl > 0
    assert ("model.layers.0.mlp", "i8/nl4") in {(part.module, part.how) for part in result.quantization_costs}
    assert check(demo_folder, demo_nl4i8, explain=False).quantization_costs == ()


def test_a_reference_file_does_not_hide_a_wrong_weight(demo_folder: Path, demo_nl4i8: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    assert check(demo_folder, demo_nl4i8, save_reference=reference).passed

    def edit(model: onnx.ModelProto) -> None:
        change_weight(model, ffn_node(model).input[2], lambda s: s.__setitem__((5, 1), s[5, 1] * np.float16(1.25)))

    result = check(demo_folder, changed(demo_nl4i8, tmp_path / "changed", edit), reference=reference, explain=False)
    assert "stored weights" not in failed(result)
    assert f"layer {LAYER}: SparseGatedFFNNL4I8 (model.layers.{LAYER}.mlp)" in failed(result)


def test_f16_overflow(demo_folder: Path, demo_f16: Path, tmp_path: Path) -> None:
    neuron = busiest(demo_f16, demo_folder)

    def edit(model: onnx.ModelProto) -> None:
        change_weight(model, ffn_node(model).input[5], lambda w: w.__setitem__((neuron, 7), np.float32(1e5)))

    with np.errstate(over="ignore"):
        artifact = changed(demo_f16, tmp_path, edit)
    result = check(demo_folder, artifact)
    assert_named(result, LAYER, "SparseGatedFFNF16")
    assert all(not c.passed for c in result.comparisons)


def test_intact_artifacts_pass_at_the_same_limits(
    demo_folder: Path, demo_artifact: Path, demo_nl4i8: Path, demo_f16: Path
) -> None:
    ids = np.asarray(load_tokenizer(demo_folder)(default_text()[:2000])["input_ids"][:48], np.int64)
    for artifact in (demo_artifact, demo_nl4i8, demo_f16):
        result = check(demo_folder, artifact)
        assert result.passed, failed(result)
        assert len(result.operators) == 5 * (1 + 2) + 1  # FFN, q, k and v in one, o; lm_head
        assert result.stored_weights is not None
        assert result.stored_weights.share > 0.999
        target = open_target(demo_folder, artifact)
        for low_memory in (False, True):
            assert explain(target.load(low_memory=low_memory), target, ids) == []
