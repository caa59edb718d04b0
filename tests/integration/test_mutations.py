"""Deliberate faults: validate catches each at its default limits, --explain names the layer where there is one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from prosparse_export import export_model
from prosparse_export.analysis.activation_counts import measure_activity
from prosparse_export.analysis.ffn_nodes import ffn_nodes, read_graph
from prosparse_export.errors import ProSparseError
from prosparse_export.export import ExportOptions
from prosparse_export.runtime.operator_library import library_path
from prosparse_export.text import default_text
from prosparse_export.validation import Limits, Validation, ValidationOptions, as_text, validate
from prosparse_export.validation.explain import explain
from prosparse_export.validation.validation_target import open_target
from prosparse_models.loading.tokenizer import load_tokenizer

pytestmark = pytest.mark.integration
Edit = Callable[[onnx.ModelProto], None]
SMALL = ValidationOptions(tokens=160, context=96, greedy=12, step_tokens=24, explain=True)  # default limits
LAYER = 2
HEAD_COUNTS = ("num_heads", "kv_num_heads")


@pytest.fixture(scope="session")
def demo_i4i8(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    output = tmp_path_factory.mktemp("i4i8") / "demo.onnx"
    return export_model(demo_folder, output, ExportOptions(weights="i4i8")).path


@pytest.fixture(scope="session")
def demo_f16(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    output = tmp_path_factory.mktemp("f16") / "demo.onnx"
    return export_model(demo_folder, output, ExportOptions(weights="f16")).path


def changed(artifact: Path, folder: Path, edit: Edit) -> Path:
    """A copy of the artifact, edited; its weights are inside the graph, so that they can be edited too."""
    shutil.copytree(artifact.parent, folder, dirs_exist_ok=True)
    model = onnx.load(folder / artifact.name)
    edit(model)
    (folder / f"{artifact.name}.data").unlink()
    onnx.save(model, folder / artifact.name)
    manifest = json.loads((folder / "prosparse.json").read_text())
    del manifest["files"]  # as if the export itself had done it: sizes and hashes would agree
    (folder / "prosparse.json").write_text(json.dumps(manifest))
    return folder / artifact.name


def check(folder: Path, artifact: Path, **options: Any) -> Validation:
    from dataclasses import replace

    return validate(folder, artifact, replace(SMALL, **options))


def failed(result: Validation) -> list[str]:
    return [c.name for c in result.checks if not c.passed]


def block(model: onnx.ModelProto, layer: int = LAYER) -> onnx.NodeProto:
    return ffn_nodes(model)[layer].node


def attention(model: onnx.ModelProto, layer: int = LAYER) -> onnx.NodeProto:
    return [n for n in model.graph.node if n.op_type == "GroupQueryAttention"][layer]


def before(model: onnx.ModelProto, node: onnx.NodeProto, new: list[onnx.NodeProto]) -> None:
    place = next(i for i, n in enumerate(model.graph.node) if n.name == node.name)
    for offset, item in enumerate(new):
        model.graph.node.insert(place + offset, item)


def change_weight(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], None]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def busiest(artifact: Path, demo_folder: Path) -> int:
    ids = np.asarray(load_tokenizer(demo_folder)(default_text()[:2000])["input_ids"][:48], np.int64)
    return int(measure_activity(artifact, [ids]).layers[LAYER].per_neuron.argmax())


def wrong_threshold(model: onnx.ModelProto) -> None:
    next(a for a in block(model).attribute if a.name == "threshold").f = 0.02


def relu_on_the_wrong_branch(model: onnx.ModelProto) -> None:
    node = block(model)
    node.input[1], node.input[3] = node.input[3], node.input[1]


def swapped_gate_and_up(model: onnx.ModelProto) -> None:
    tensors = {t.name: t for t in model.graph.initializer}
    gate, up = tensors[block(model).input[1]], tensors[block(model).input[3]]
    gate.raw_data, up.raw_data = up.raw_data, gate.raw_data


def off_by_one_past_length(model: onnx.ModelProto) -> None:
    node = attention(model)
    one = helper.make_tensor("f.one", onnx.TensorProto.INT64, [1], [1])
    new = [
        helper.make_node("Shape", [node.input[3]], ["f.past"], start=2, end=3),
        helper.make_node("Constant", [], ["f.one"], value=one),
        helper.make_node("Min", ["f.past", "f.one"], ["f.some"]),
        helper.make_node("Cast", ["f.some"], ["f.some32"], to=onnx.TensorProto.INT32),
        helper.make_node("Sub", [node.input[5], "f.some32"], ["f.lengths"]),
    ]
    before(model, node, new)
    node = attention(model)
    node.input[5] = "f.lengths"


def stale_slot(model: onnx.ModelProto) -> None:
    node = attention(model)
    constants = {"f.0": 0, "f.1": 1, "f.end": 2**62, "f.axis": 2}
    new = [
        helper.make_node("Constant", [], [n], value=helper.make_tensor(n, onnx.TensorProto.INT64, [1], [v]))
        for n, v in constants.items()
    ]
    past = node.input[3]
    new += [
        helper.make_node("Slice", [past, "f.1", "f.end", "f.axis"], ["f.rest"]),
        helper.make_node("Slice", [past, "f.0", "f.1", "f.axis"], ["f.first"]),
        helper.make_node("Concat", ["f.rest", "f.first"], ["f.turned"], axis=2),
    ]
    before(model, node, new)
    attention(model).input[3] = "f.turned"


def attention_forgets(model: onnx.ModelProto) -> None:
    """Only tokens after the fiftieth show it."""
    attention(model).attribute.append(helper.make_attribute("local_window_size", 50))


def padding_ignored(model: onnx.ModelProto) -> None:
    one = helper.make_tensor("one", onnx.TensorProto.INT64, [1], [1])
    users = [n for n in model.graph.node if "attention_mask" in n.input]
    for node in users:
        node.input[list(node.input).index("attention_mask")] = "f.mask"
    shape = helper.make_node("Shape", ["attention_mask"], ["f.shape"])
    model.graph.node.insert(0, shape)
    model.graph.node.insert(1, helper.make_node("ConstantOfShape", ["f.shape"], ["f.mask"], value=one))


GRAPH_FAULTS: dict[str, tuple[Edit, int, str]] = {
    "wrong threshold": (wrong_threshold, LAYER, "SparseGatedFFNBF16"),
    "swapped gate and up": (swapped_gate_and_up, LAYER, "SparseGatedFFNBF16"),
    "ReLU on the wrong branch": (relu_on_the_wrong_branch, LAYER, "SparseGatedFFNBF16"),
    "off by one past length": (off_by_one_past_length, LAYER, "GroupQueryAttention"),
    "stale KV slot": (stale_slot, LAYER, "GroupQueryAttention"),
    "attention that forgets": (attention_forgets, LAYER, "GroupQueryAttention"),
    "padding ignored": (padding_ignored, 0, "from input_ids, attention_mask"),
}


def assert_named(result: Validation, layer: int, op: str) -> None:
    assert not result.passed
    assert result.findings, failed(result)
    for finding in result.findings:
        assert finding.layer == layer, list(map(str, result.findings))
        assert finding.op.startswith(op), list(map(str, result.findings))


@pytest.mark.parametrize("fault", GRAPH_FAULTS)
def test_fault_in_the_graph(fault: str, demo_folder: Path, demo_artifact: Path, tmp_path: Path) -> None:
    edit, layer, op = GRAPH_FAULTS[fault]
    assert_named(check(demo_folder, changed(demo_artifact, tmp_path, edit)), layer, op)


def test_neuron_dropped(demo_folder: Path, demo_artifact: Path, tmp_path: Path) -> None:
    neuron = busiest(demo_artifact, demo_folder)

    def edit(model: onnx.ModelProto) -> None:
        change_weight(model, block(model).input[5], lambda w: w.__setitem__(neuron, 0))

    result = check(demo_folder, changed(demo_artifact, tmp_path, edit))
    assert_named(result, LAYER, "SparseGatedFFNBF16")
    assert {f.token >= 0 for f in result.findings} == {True, False}  # by its weights and by what it computes


def test_neuron_dropped_that_the_text_never_uses(demo_folder: Path, demo_artifact: Path, tmp_path: Path) -> None:
    """No logit shows it; the weights do."""

    def edit(model: onnx.ModelProto) -> None:
        activity = measure_activity(demo_artifact, [np.arange(3, 163)])
        unused = int(activity.layers[LAYER].per_neuron.argmin())
        change_weight(model, block(model).input[5], lambda w: w.__setitem__((unused, 0), 0))

    assert_named(check(demo_folder, changed(demo_artifact, tmp_path, edit)), LAYER, "SparseGatedFFNBF16")


@pytest.mark.parametrize(("scales", "name"), [(2, "gate_proj.weight.i4_scale"), (8, "down_proj.weight_t.i8_scale")])
def test_one_wrong_scale(scales: int, name: str, demo_folder: Path, demo_i4i8: Path, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        change_weight(model, block(model).input[scales], lambda s: s.__setitem__((5, 1), s[5, 1] * np.float16(1.25)))

    result = check(demo_folder, changed(demo_i4i8, tmp_path, edit))
    assert_named(result, LAYER, "SparseGatedFFNI4I8")
    assert result.findings[0].run.endswith(name)


def test_one_wrong_scale_outside_the_ffns(demo_folder: Path, demo_i4i8: Path, tmp_path: Path) -> None:
    """Of attention's output projection; every logit stays within the bound."""

    def edit(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.name == f"model.layers.{LAYER}.self_attn.o_proj")
        change_weight(model, node.input[2], lambda s: s.__setitem__((5, 1), s[5, 1] * np.float16(1.02)))

    result = check(demo_folder, changed(demo_i4i8, tmp_path, edit))
    assert all(c.passed for c in result.comparisons)
    assert_named(result, LAYER, "LinearI4")
    assert result.findings[0].run.endswith("o_proj.weight.i4_scale")


@pytest.mark.parametrize("part", ["q_proj", "k_proj", "v_proj"])
def test_one_wrong_scale_in_a_packed_product(part: str, demo_folder: Path, demo_i4i8: Path, tmp_path: Path) -> None:
    packed = f"model.layers.{LAYER}.self_attn.q_proj+k_proj+v_proj"

    def edit(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.name == packed)
        heads, kv_heads = (next(a.i for a in attention(model).attribute if a.name == n) for n in HEAD_COUNTS)
        rows = next(tuple(t.dims) for t in model.graph.initializer if t.name == node.input[2])[0]
        each = rows // (heads + 2 * kv_heads)
        row = {"q_proj": 0, "k_proj": heads, "v_proj": heads + kv_heads}[part] * each + 1
        change_weight(model, node.input[2], lambda s: s.__setitem__((row, 1), s[row, 1] * np.float16(1.02)))

    result = check(demo_folder, changed(demo_i4i8, tmp_path, edit))
    assert_named(result, LAYER, "LinearI4")
    assert result.findings[0].run.endswith(f"{packed}.weight.i4_scale")


@pytest.mark.parametrize("table", ["cos", "sin"])
def test_one_wrong_angle_behind_the_text(table: str, demo_folder: Path, demo_artifact: Path, tmp_path: Path) -> None:
    name, tables = f"prosparse.rotary_{table}.0", {f"prosparse.rotary_{each}.0" for each in ("cos", "sin")}

    def edit(model: onnx.ModelProto) -> None:
        change_weight(model, name, lambda t: t.__setitem__((-1, 2), np.nextafter(t[-1, 2], np.float32(2))))

    def shorten(model: onnx.ModelProto) -> None:  # fewer rows than the model has positions
        for tensor in model.graph.initializer:
            if tensor.name in tables:
                rows = numpy_helper.to_array(tensor)[:200].copy()
                tensor.CopyFrom(numpy_helper.from_array(rows, tensor.name))

    for number, (fault, wrong) in enumerate(((edit, {name}), (shorten, tables))):
        result = check(demo_folder, changed(demo_artifact, tmp_path / str(number), fault))
        assert failed(result) == ["stored weights"]
        assert result.stored_weights is not None
        assert set(result.stored_weights.wrong) == wrong


def test_one_wrong_number_of_a_norm(demo_folder: Path, demo_i4i8: Path, tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        change_weight(model, f"model.layers.{LAYER}.input_layernorm.weight", lambda w: w.__setitem__(3, w[3] * 1.001))

    result = check(demo_folder, changed(demo_i4i8, tmp_path, edit))
    assert failed(result) == ["stored weights"]
    assert {finding.layer for finding in result.findings} == {LAYER}
    assert result.findings[0].op == "initializer"


def test_what_rounding_costs_is_named_by_part(demo_folder: Path, demo_i4i8: Path) -> None:
    """All is computed as it should be, and a limit breaks: the findings are parts of the model."""
    result = check(demo_folder, demo_i4i8, limits=Limits(max_kl=1e-3))
    assert failed(result) == ["mean KL divergence"]
    assert result.findings == ()
    whole, *parts = result.quantization_costs
    names = {part.module for part in parts}
    blocks = {f"model.layers.{i}.{name}" for i in range(5) for name in ("mlp", "self_attn")}
    assert names == {*blocks, "model.embed_tokens", "lm_head"}
    assert whole.kl > parts[0].kl > parts[-1].kl > 0
    assert result.quality[1].kl_mean == pytest.approx(whole.kl, rel=0.5)  # of 160 tokens it is, of 96 the other
    assert f"alone, {parts[0].module} {parts[0].kl:.2g}" in as_text(result)


def test_a_reference_file_does_not_hide_a_wrong_weight(demo_folder: Path, demo_i4i8: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference"
    assert check(demo_folder, demo_i4i8, save_reference=reference).passed

    def edit(model: onnx.ModelProto) -> None:
        change_weight(model, block(model).input[2], lambda s: s.__setitem__((5, 1), s[5, 1] * np.float16(1.25)))

    result = check(demo_folder, changed(demo_i4i8, tmp_path / "changed", edit), reference=reference)
    assert "stored weights" not in failed(result)
    assert f"layer {LAYER}: SparseGatedFFNI4I8 (model.layers.{LAYER}.mlp)" in failed(result)


def test_f16_overflow(demo_folder: Path, demo_f16: Path, tmp_path: Path) -> None:
    neuron = busiest(demo_f16, demo_folder)

    def edit(model: onnx.ModelProto) -> None:
        change_weight(model, block(model).input[5], lambda w: w.__setitem__((neuron, 7), np.float32(1e5)))

    with np.errstate(over="ignore"):
        artifact = changed(demo_f16, tmp_path, edit)
    result = check(demo_folder, artifact)
    assert_named(result, LAYER, "SparseGatedFFNF16")
    assert all(not c.passed for c in result.comparisons)


OLD_LIBRARY = r"""
#include <dlfcn.h>
#include <string.h>

typedef struct { const void* (*get_api)(unsigned); const char* (*version)(void); } Base;
static const Base* onnxruntime;
static void* table[300];  /* OrtApi, as far as the library knows it; docs in native/ort/ort_abi.h */
static void* (*add_really)(void*, void**);

static void* add(void* domain, void** op) {
  const char* name = ((const char* (*)(void*))op[2])(op);
  return strncmp(name, LACKS, strlen(LACKS)) == 0 ? 0 : add_really(domain, op);
}
static const void* get_api(unsigned version) {
  memcpy(table, onnxruntime->get_api(version), sizeof table);
  add_really = table[27];
  table[27] = add;  /* CustomOpDomain_Add */
  return table;
}
static const char* version(void) { return onnxruntime->version(); }
static void* real(const char* name) { return dlsym(dlopen(LIBRARY, RTLD_NOW), name); }

void* RegisterCustomOps(void* options, const Base* base) {
  static Base older = {get_api, version};
  onnxruntime = base;
  return ((void* (*)(void*, const Base*))real("RegisterCustomOps"))(options, &older);
}
const char* prosparse_ops_info(void) { return ((const char* (*)(void))real("prosparse_ops_info"))(); }
"""


@pytest.mark.parametrize(("lacks", "unknown"), [("Linear", {"LinearBF16"}), ("", {"LinearBF16", "SparseGatedFFNBF16"})])
def test_library_of_an_older_version(
    lacks: str,
    unknown: set[str],
    demo_folder: Path,
    demo_artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It lacks some of the operators: onnxruntime runs their bodies, right and slow, and says nothing."""
    source, library = tmp_path / "old.c", tmp_path / "libold.so"
    source.write_text(OLD_LIBRARY)
    macros = [f'-DLACKS="{lacks}"', f'-DLIBRARY="{library_path()}"']
    command = [os.environ.get("CC", "cc"), "-shared", "-fPIC", *macros, "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True)
    monkeypatch.setenv("PROSPARSE_OPS_LIBRARY", str(library))
    result = check(demo_folder, demo_artifact)
    assert failed(result) == ["operators in the library"]
    assert set(result.unknown_operators) == unknown


def test_truncated_data(demo_folder: Path, demo_artifact: Path, tmp_path: Path) -> None:
    shutil.copytree(demo_artifact.parent, tmp_path, dirs_exist_ok=True)
    data = tmp_path / f"{demo_artifact.name}.data"
    os.truncate(data, data.stat().st_size - 5000)
    stages: list[str] = []
    with pytest.raises(ProSparseError, match=r"demo\.onnx\.data: expected [\d,]+ bytes, got") as caught:
        validate(demo_folder, tmp_path / demo_artifact.name, progress=lambda stage, *_: stages.append(stage))
    assert "copy" in str(caught.value.hint)
    assert stages == []  # before PyTorch's model is loaded


def test_racing_thread(demo_folder: Path, demo_artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Now and then some columns of one operator's result, with the library, are not what they were."""
    rng = np.random.default_rng()
    output = block(read_graph(demo_artifact)).output[0]
    real = onnxruntime.InferenceSession

    class Racing(real):  # type: ignore[valid-type,misc]
        def __init__(self, path: Any, options: Any, **kwargs: Any) -> None:
            super().__init__(path, options, **kwargs)
            try:
                options.get_session_config_entry("prosparse.registered")
                self.races = True
            except RuntimeError:
                self.races = False

        def run(self, names: Any, feeds: Any, *rest: Any) -> Any:
            names = names or [o.name for o in self.get_outputs()]
            values = super().run(names, feeds, *rest)
            for name, value in zip(names, values, strict=True):
                if self.races and name in (output, "logits"):
                    value[..., :64] += np.float32(1e-5 if name == "logits" else 1e-2) * rng.random(dtype=np.float32)
            return values

    monkeypatch.setattr(onnxruntime, "InferenceSession", Racing)
    result = check(demo_folder, demo_artifact)
    assert "bit-identical runs" in failed(result)
    assert all(c.passed for c in result.comparisons)  # far within their bounds: only the bits tell
    assert_named(result, LAYER, "SparseGatedFFNBF16")


def test_threads_that_race_are_seen_by_repeat_alone(
    demo_folder: Path, demo_artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bit of one logit, where there are two threads: what runs with one thread is right."""
    real = onnxruntime.InferenceSession

    class Racing(real):  # type: ignore[valid-type,misc]
        def __init__(self, path: Any, options: Any, **kwargs: Any) -> None:
            super().__init__(path, options, **kwargs)
            self.races = options.intra_op_num_threads > 1

        def run(self, names: Any, feeds: Any, *rest: Any) -> Any:
            values = super().run(names, feeds, *rest)
            if self.races:
                values[0].view(np.uint32).flat[-1] ^= 1
            return values

    monkeypatch.setattr(onnxruntime, "InferenceSession", Racing)
    usual = check(demo_folder, demo_artifact, threads=1, explain=False)
    assert usual.passed, failed(usual)
    result = check(demo_folder, demo_artifact, threads=1, explain=False, repeat=True)
    assert failed(result) == ["bit-identical runs"]
    assert "run 2 (2 threads) against run 1 (1)" in result.determinism.first


def test_the_demo_passes_at_the_same_limits(
    demo_folder: Path, demo_artifact: Path, demo_i4i8: Path, demo_f16: Path
) -> None:
    ids = np.asarray(load_tokenizer(demo_folder)(default_text()[:2000])["input_ids"][:64], np.int64)
    for artifact in (demo_artifact, demo_i4i8, demo_f16):
        result = check(demo_folder, artifact)
        assert result.passed, failed(result)
        assert len(result.operators) == 5 * (1 + 2) + 1  # FFN, q, k and v in one, o; lm_head
        assert result.stored_weights is not None
        assert result.stored_weights.share > 0.999
        target = open_target(demo_folder, artifact)
        for low_memory in (False, True):
            assert explain(target.load(low_memory=low_memory), target, ids) == []
