"""User errors, model folders: damaged and unsupported ones give one line and a hint, and nothing is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from support.families import family

from prosparse_export.cli import main

pytestmark = pytest.mark.integration


@pytest.fixture
def folder(demo_folder: Path, tmp_path: Path) -> Path:
    """A copy of the demo model to damage."""
    return Path(shutil.copytree(demo_folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "__pycache__")))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    """A tiny model, for errors that tracing precedes."""
    family("LLaMA (ReluLLaMA)").save(tmp_path / "llama")
    return tmp_path / "llama"


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def export(folder: Path, output: Path, *options: object) -> Result:
    return CliRunner().invoke(main, ["export", str(folder), str(output), "-q", *map(str, options)])


def assert_error(result: Result, output: Path, *texts: str) -> None:
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    error, hint = (line for line in result.stderr.splitlines() if line)
    assert error.startswith("error: "), result.stderr
    assert hint.startswith("hint: "), result.stderr
    for text in texts:
        assert text in error
    assert not output.parent.exists()


def test_no_config(folder: Path, tmp_path: Path) -> None:
    (folder / "config.json").unlink()
    output = tmp_path / "out" / "m.onnx"
    assert_error(export(folder, output), output, str(folder), "no config.json found")


def test_truncated_safetensors(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])
    output = tmp_path / "out" / "m.onnx"
    assert_error(export(folder, output), output, str(weights), "not a valid safetensors file (1000000 bytes)")


def test_unknown_model_type(folder: Path, tmp_path: Path) -> None:
    change_config(folder, model_type="llamma", architectures=["LlammaForCausalLM"])
    output = tmp_path / "out" / "m.onnx"
    assert_error(export(folder, output), output, "unknown model_type 'llamma'")


@pytest.mark.parametrize("allow", [False, True])
def test_silu_model(allow: bool, llama: Path, tmp_path: Path) -> None:
    change_config(llama, hidden_act="silu")
    output = tmp_path / "out" / "m.onnx"
    result = export(llama, output, "-v", *(["--allow-dense"] if allow else []))
    if allow:
        assert result.exit_code == 0, result.output
        assert result.stdout.splitlines()[-1] == f"{output}: 0 FFNs rewritten, 1 not rewritten"
        assert "layer 0: gate is Silu, not a ReLU" in result.stderr.splitlines()
    else:
        assert_error(result, output, "no FFN could be rewritten: layer 0: gate is Silu, not a ReLU")
        assert "--allow-dense" in result.stderr


def test_custom_code_does_not_run(folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (folder / "modeling_mine.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    auto_map = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    change_config(folder, model_type="mine", architectures=["MineForCausalLM"], auto_map=auto_map)
    output = tmp_path / "out" / "m.onnx"
    result = export(folder, output)
    assert_error(result, output, "unknown model_type 'mine'", "which was not run")
    assert "--trust-remote-code" in result.stderr
    assert not mark.exists()


def test_custom_code_of_a_known_model_type_does_not_run(llama: Path, demo_folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for name in ("configuration_sparsellama", "modeling_sparsellama", "tokenization_mine"):
        (llama / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_folder / name, llama / name)
    auto_map = {
        "AutoConfig": "configuration_sparsellama.SparseLlamaConfig",
        "AutoModelForCausalLM": "modeling_sparsellama.SparseLlamaForCausalLM",
    }
    sparse = {"model_type": "sparsellama", "architectures": ["SparseLlamaForCausalLM"], "auto_map": auto_map}
    change_config(llama, hidden_act="fatrelu", hidden_act_param=0.01, **sparse)
    output = tmp_path / "out" / "m.onnx"
    result = export(llama, output)
    assert result.exit_code == 0, result.output
    assert not mark.exists()
    exported = json.loads((output.parent / "config.json").read_text())
    assert (exported["model_type"], exported["hidden_act"], exported["hidden_act_param"]) == ("llama", "fatrelu", 0.01)
    info = CliRunner().invoke(main, ["info", str(output), "--json"])
    assert info.exit_code == 0, info.output
    assert "fatrelu" in info.stdout


@pytest.mark.parametrize("name", ["model.layers.3.mlp.up_proj.weight", "model.layers.3.input_layernorm.weight"])
def test_one_damaged_layer_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    output = tmp_path / "out" / "m.onnx"
    result = export(folder, output, "--weights", "i8")
    assert_error(result, output, f"weights: {name}: expected finite values, got 1 NaN or Inf of")


def test_one_layer_of_another_shape_is_named(folder: Path, tmp_path: Path) -> None:
    name = "model.layers.3.mlp.up_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name][:-32].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    output = tmp_path / "out" / "m.onnx"
    assert_error(export(folder, output), output, name, "expected shape")
