"""Files from the real exporters, each run here in its own environment: every FFN is found and rewritten."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from conftest import DEMO
from support.environments import environment
from support.relu_shapes import count_relu_shapes
from transformers import LlamaConfig, LlamaForCausalLM

from prosparse_export import OptimizeOptions, optimize_file

pytestmark = pytest.mark.integration
LAYERS = 2
SCRIPT = Path(__file__).parent.parent / "producers" / "export_third_party.py"
# Without their dependencies: torch, onnx, onnxruntime and numpy are ours, seen through a .pth file.
OPTIMUM = (
    "optimum-onnx==0.1.0",
    "optimum==2.1.0",
    "transformers==4.57.6",
    "huggingface-hub==0.36.2",
    "tokenizers==0.22.2",
    "requests==2.34.2",
    "urllib3==2.8.0",
    "certifi",
    "charset-normalizer==3.5.2",
    "idna",
)
GENAI = ("onnxruntime-genai==0.18.0",)


@dataclass(frozen=True)
class Producer:
    """An exporter, the packages that it needs, and what `optimize` is asked for and may change (logits of size 5)."""

    packages: tuple[str, ...]
    weights: str | None
    largest_difference: float


PRODUCERS = {
    "optimum": Producer(OPTIMUM, None, 2e-5),
    "dynamo": Producer((), None, 2e-5),
    "genai-fp32": Producer(GENAI, None, 2e-5),
    "genai-int4": Producer(GENAI, "i4i8", 0.3),
}


def interpreter(packages: tuple[str, ...]) -> Path:
    """Return a Python with ``packages`` before our own ones; kept between runs."""
    return environment(packages[0].replace("==", "-"), packages, ours=True) if packages else Path(sys.executable)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    vocabulary = int(json.loads((DEMO / "config.json").read_text())["vocab_size"])
    config = LlamaConfig(**sizes, vocab_size=vocabulary, num_hidden_layers=LAYERS, hidden_act="relu")
    model = LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.15)
    folder = tmp_path_factory.mktemp("llama") / "m"
    model.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    values.update(rope_theta=10000.0, torch_dtype="float32")  # older transformers look for these
    (folder / "config.json").write_text(json.dumps(values))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((DEMO / name).read_bytes())
    return folder


@pytest.mark.parametrize("name", PRODUCERS)
def test_every_ffn_is_found(name: str, llama: Path, tmp_path: Path) -> None:
    producer = PRODUCERS[name]
    command = [str(interpreter(producer.packages)), str(SCRIPT), name, str(llama), str(tmp_path / "made")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    source = tmp_path / "made" / "model.onnx"
    options = OptimizeOptions(weights=producer.weights)  # type: ignore[arg-type]
    result = optimize_file(source, tmp_path / "out" / "m.onnx", options)
    assert [o.activation for o in result.rewritten] == ["relu"] * LAYERS
    assert result.not_rewritten == ()
    assert count_relu_shapes(onnx.load(source, load_external_data=False).graph) == LAYERS  # nothing was overlooked
    check = result.manifest.output_check
    assert check.outputs_compared, check
    assert check.largest_output > 1
    assert check.largest_difference <= producer.largest_difference
