"""Write ONNX files with other exporters, each in its own environment; then rewrite and run them.

    python -m venv /tmp/optimum && /tmp/optimum/bin/pip install optimum-onnx==0.1.0 torch
    /tmp/optimum/bin/python tests/producers/export_third_party.py optimum MODEL_DIR OUT_DIR

    python -m venv /tmp/genai && /tmp/genai/bin/pip install onnxruntime-genai==0.18.0 torch transformers onnx-ir
    /tmp/genai/bin/python tests/producers/export_third_party.py genai-fp32 MODEL_DIR OUT_DIR  # or -fp16, -int4

    python tests/producers/export_third_party.py dynamo MODEL_DIR OUT_DIR                       # torch alone

Then `prosparse optimize OUT_DIR/model.onnx OUT.onnx -v`, with `--weights i4i8` for int4. These packages contradict the
project's own versions or bring some hundred MB, so the tests run on graphs of the same structure, built by hand
(tests/support/third_party_graphs.py). This script produces the real files.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def optimum(model: Path, out: Path) -> None:
    """The tracing exporter, with a KV cache."""
    from optimum.exporters.onnx import main_export

    main_export(str(model), output=out, task="text-generation-with-past", device="cpu", do_validation=False)


def genai(model: Path, out: Path, precision: str) -> None:
    """onnxruntime-genai's model builder."""
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-m", model, "-i", model, "-o", out]
    options = ["--extra_options", "int4_accuracy_level=4"] if precision == "int4" else []
    subprocess.run([*map(str, command), "-p", precision, "-e", "cpu", *options], check=True)


def dynamo(model: Path, out: Path) -> None:
    """torch.onnx.export by hand, without a cache."""
    import torch
    from transformers import AutoModelForCausalLM

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return self.inner(input_ids=input_ids, use_cache=False).logits

    ids = torch.arange(10).reshape(2, 5)
    sizes = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    out.mkdir(exist_ok=True)
    torch.onnx.export(Logits().eval(), (ids,), out / "model.onnx", dynamo=True, dynamic_shapes=sizes)


def main() -> None:
    """See above."""
    producer, model, out = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    if producer.startswith("genai-"):
        genai(model, out, producer.removeprefix("genai-"))
    else:
        {"optimum": optimum, "dynamo": dynamo}[producer](model, out)


if __name__ == "__main__":
    main()
