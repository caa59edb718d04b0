"""What a user gets for bad input: one line, a hint, exit 1, and nothing left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from conftest import COMMAND

from prosparse_export import export_model, register
from prosparse_export.bench import bench
from prosparse_export.errors import ProSparseError
from prosparse_export.optimize.optimize import optimize_file
from prosparse_export.report import measure
from prosparse_export.validation import validate

pytestmark = pytest.mark.integration
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(demo_folder: Path, tmp_path: Path) -> Path:
    """A copy of the demo to damage."""
    return Path(shutil.copytree(demo_folder, tmp_path / "model", ignore=shutil.ignore_patterns("*.py", "__pycache__")))


def change_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def assert_refused(child: subprocess.CompletedProcess[str], output: Path, *texts: str) -> None:
    assert child.returncode == 1, child.stderr
    assert child.stdout == ""
    assert "Traceback" not in child.stderr
    lines = [line for line in child.stderr.splitlines() if line]
    assert lines[0].startswith("error: "), child.stderr
    assert lines[1].startswith("hint: "), child.stderr
    assert len(lines) == 2
    for text in texts:
        assert text in lines[0]
    if output.parent.is_dir():
        assert [p.name for p in output.parent.iterdir()] == []


def test_folder_without_config(folder: Path, tmp_path: Path, run_cli: Run) -> None:
    (folder / "config.json").unlink()
    out = tmp_path / "out" / "m.onnx"
    assert_refused(run_cli(folder, out, "-q"), out, str(folder), "no config.json found")
    assert not out.parent.exists()


def test_truncated_safetensors(folder: Path, tmp_path: Path, run_cli: Run) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1_000_000])
    out = tmp_path / "out" / "m.onnx"
    assert_refused(run_cli(folder, out, "-q"), out, str(weights), "not a valid safetensors file (1000000 bytes)")


def test_unknown_model_type(folder: Path, tmp_path: Path, run_cli: Run) -> None:
    change_config(folder, model_type="llamma", architectures=["LlammaForCausalLM"])
    out = tmp_path / "out" / "m.onnx"
    assert_refused(run_cli(folder, out, "-q"), out, "unknown model_type 'llamma'")


def test_silu_model(folder: Path, tmp_path: Path, run_cli: Run) -> None:
    change_config(folder, hidden_act="silu")
    out = tmp_path / "out" / "m.onnx"
    child = run_cli(folder, out, "-q")
    assert_refused(child, out, "no FFN could be rewritten: layer 0: gate is Silu, not a ReLU (and 4 more)")
    assert "--allow-dense" in child.stderr


def test_silu_model_with_allow_dense(folder: Path, tmp_path: Path, run_cli: Run) -> None:
    change_config(folder, hidden_act="silu")
    out = tmp_path / "out" / "m.onnx"
    child = run_cli(folder, out, "-q", "-v", "--allow-dense")
    assert child.returncode == 0, child.stderr
    assert child.stdout.splitlines()[-1] == f"{out}: 0 FFNs rewritten, 5 not rewritten"
    assert "layer 3: gate is Silu, not a ReLU" in child.stderr.splitlines()


def test_output_exists(demo_folder: Path, tmp_path: Path, run_cli: Run) -> None:
    out = tmp_path / "m.onnx"
    out.write_text("mine")
    child = run_cli(demo_folder, out, "-q")
    assert child.returncode == 1
    assert f"error: output: {out}: exists already" in child.stderr
    assert "hint: " in child.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]
    assert out.read_text() == "mine"


def test_a_file_beside_it_exists(demo_folder: Path, tmp_path: Path, run_cli: Run) -> None:
    (tmp_path / "config.json").write_text("{}")
    child = run_cli(demo_folder, tmp_path / "m.onnx", "-q")
    assert child.returncode == 1
    assert f"error: output: {tmp_path / 'config.json'}: exists already, with other contents" in child.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "{}"


def test_output_in_the_model_folder(folder: Path, run_cli: Run) -> None:
    before = sorted(p.name for p in folder.iterdir())
    child = run_cli(folder, folder / "m.onnx", "-q", "--overwrite")
    assert child.returncode == 1
    assert "got the model folder, whose config.json it would replace" in child.stderr
    assert sorted(p.name for p in folder.iterdir()) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        mount = ["sudo", "-n", *mount]
        if shutil.which("sudo") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("mounting a tmpfs needs root or passwordless sudo")
    yield disk
    subprocess.run([*mount[: mount.index("mount")], "umount", str(disk)], check=True)


def test_disk_full(demo_folder: Path, small_disk: Path, run_cli: Run) -> None:
    out = small_disk / "m.onnx"
    assert_refused(run_cli(demo_folder, out, "-q"), out, str(small_disk), "disk full")


def test_disk_fills_up_while_writing(demo_folder: Path, small_disk: Path) -> None:
    """As above, but the free space was there when the export looked."""
    lie = "import shutil; shutil.disk_usage = lambda _: type('U', (), {'free': 1 << 40}); "
    command = [sys.executable, "-c", lie + "from prosparse_export.cli import export_command as e; e()"]
    out = small_disk / "m.onnx"
    child = subprocess.run([*command, str(demo_folder), str(out), "-q"], capture_output=True, text=True, check=False)
    assert_refused(child, out, str(small_disk), "cannot write: disk full")


@pytest.mark.parametrize("where", ["/proc/prosparse", "under a file", "read-only"])
def test_unwritable_folder(where: str, demo_folder: Path, tmp_path: Path, run_cli: Run) -> None:
    target = tmp_path / "target"
    if where == "under a file":
        target.write_text("mine")
    elif where == "read-only":
        if os.geteuid() == 0:  # root writes anywhere but here
            target = Path("/proc")
        else:
            target.mkdir(mode=0o555)
    else:
        target = Path(where)
    child = run_cli(demo_folder, target / "m.onnx", "-q")
    assert child.returncode == 1, child.stderr
    assert child.stderr.startswith("error: output: ")
    assert "Traceback" not in child.stderr
    assert not (target / "m.onnx").exists()
    assert "hint: " in child.stderr


def test_code_in_the_folder_does_not_run(folder: Path, tmp_path: Path, run_cli: Run) -> None:
    mark = tmp_path / "ran"
    (folder / "modeling_mine.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    auto_map = {"AutoConfig": "modeling_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
    change_config(folder, model_type="mine", architectures=["MineForCausalLM"], auto_map=auto_map)
    out = tmp_path / "out" / "m.onnx"
    child = run_cli(folder, out, "-q")
    assert_refused(child, out, "model_type 'mine' is unknown", "which was not run")
    assert "--trust-remote-code" in child.stderr
    assert not mark.exists()


def test_code_in_the_folder_of_a_known_type_does_not_run(folder: Path, tmp_path: Path, run_cli: Run) -> None:
    mark = tmp_path / "ran"
    for name in ("configuration_sparsellama", "modeling_sparsellama", "tokenization_mine"):
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    auto_map = {
        "AutoConfig": "configuration_sparsellama.SparseLlamaConfig",
        "AutoModelForCausalLM": "modeling_sparsellama.SparseLlamaForCausalLM",
    }
    sparse = {"model_type": "sparsellama", "architectures": ["SparseLlamaForCausalLM"], "auto_map": auto_map}
    change_config(folder, hidden_act="fatrelu", hidden_act_param=0.01, **sparse)
    out = tmp_path / "out" / "m.onnx"
    child = run_cli(folder, out, "-q", "--json")
    assert child.returncode == 0, child.stderr
    layers = json.loads(child.stdout)["ffn"]["layers"]
    assert {(layer["activation"], layer["reason"]) for layer in layers} == {("fatrelu", "")}
    assert {round(layer["threshold"], 9) for layer in layers} == {0.01}
    assert not mark.exists()
    exported = json.loads((out.parent / "config.json").read_text())
    assert (exported["model_type"], exported["hidden_act"], exported["hidden_act_param"]) == ("llama", "fatrelu", 0.01)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("stage", ["trace", "write"])
def test_interruption_leaves_nothing(name: str, stage: str, demo_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "m.onnx"
    command = [*COMMAND, str(demo_folder), str(out)]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    for line in child.stderr:
        if line.rstrip().endswith(stage):
            break
    else:
        pytest.fail(f"stage {stage} was never reported")
    if stage == "trace":
        time.sleep(1.0)  # well into it: it takes many seconds
    child.send_signal(getattr(signal, name))
    rest = child.stderr.read()
    assert child.wait() != 0
    assert "Traceback" not in rest
    assert not out.exists()
    assert not out.parent.exists()


def test_usage_errors_exit_2(run_cli: Run) -> None:
    assert run_cli("--no-such-option").returncode == 2
    assert run_cli("only-one-argument").returncode == 2


def test_help_has_examples(run_cli: Run) -> None:
    child = run_cli("-h")
    assert child.returncode == 0
    assert "prosparse-export models/demo out/demo.onnx" in child.stdout


def test_a_wrong_isa_is_found_first(
    demo_folder: Path, demo_artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jobs that come to the kernels after minutes of PyTorch say it before they begin."""
    monkeypatch.setenv("PROSPARSE_ISA", "sse9")
    texts = [("text", "a text")]
    jobs: list[Callable[[Callable[..., None]], object]] = [
        lambda tell: export_model(demo_folder, tmp_path / "m.onnx", progress=tell),
        lambda tell: optimize_file(demo_artifact, tmp_path / "o.onnx", progress=tell),
        lambda tell: validate(demo_folder, demo_artifact, progress=tell),
        lambda tell: measure(demo_artifact, texts, progress=tell),
        lambda tell: bench(demo_artifact, np.arange(8), progress=tell),
    ]
    for job in jobs:
        stages: list[str] = []
        with pytest.raises(ProSparseError, match="PROSPARSE_ISA=sse9 cannot run here") as caught:
            job(lambda stage, *_: stages.append(stage))  # noqa: B023
        assert caught.value.hint is not None
        assert "unset PROSPARSE_ISA" in caught.value.hint
        assert stages == []


def test_a_wrong_isa_has_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROSPARSE_ISA", "sse9")
    with pytest.raises(ProSparseError, match="PROSPARSE_ISA=sse9 cannot run here") as caught:
        register(onnxruntime.SessionOptions())
    assert caught.value.hint is not None
    assert "unset PROSPARSE_ISA" in caught.value.hint
