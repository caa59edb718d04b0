"""onnxruntime-genai on the artifact's folder as it is, in its own environment."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import DEMO
from support.environments import environment
from transformers import AutoTokenizer

from prosparse_export import ExportOptions, export_model, load

pytestmark = pytest.mark.integration
VERSION = "0.18.0"  # constraints.txt's
NEW = 32
PROMPT = [0, 516, 559, 274, 3932, 294]
CHAT = [{"role": "user", "content": "Where is Paris?"}]
TEMPLATE = (
    "{% for m in messages %}{{ bos_token }}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_CHILD = """
import json, sys
import onnxruntime_genai as og
folder, prompt, chat, new = sys.argv[1], *map(json.loads, sys.argv[2:5])
model = og.Model(folder)
tokenizer = og.Tokenizer(model)
text = None
if chat:
    text = tokenizer.apply_chat_template(json.dumps(chat), add_generation_prompt=True)
    prompt = tokenizer.encode(text).tolist()
parameters = og.GeneratorParams(model)
parameters.set_search_options(max_length=len(prompt) + new, do_sample=False)
generator = og.Generator(model, parameters)
generator.append_tokens(prompt)
tokens = []
while not generator.is_done() and len(tokens) < new:
    generator.generate_next_token()
    tokens.append(int(generator.get_next_tokens()[0]))
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
loaded = [line.split()[-1] for line in maps.splitlines() if sys.argv[1] in line and ".onnx" not in line]
print(json.dumps({"text": text, "prompt": prompt, "tokens": tokens, "loaded": sorted(set(loaded))}))
"""


@pytest.fixture(scope="module")
def python() -> Path:
    """An interpreter with onnxruntime-genai and nothing of ours; kept between runs."""
    if sys.version_info < (3, 11):
        pytest.skip(f"there is no onnxruntime-genai {VERSION} for Python 3.10")
    return environment(f"genai-{VERSION}", [f"onnxruntime-genai=={VERSION}", "onnxruntime==1.32.0"])


def generate(python: Path, folder: Path, chat: list[dict[str, str]] | None = None) -> dict[str, object]:
    command = [str(python), "-c", _CHILD, str(folder), json.dumps(PROMPT), json.dumps(chat), str(NEW)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return result


def ours(path: Path, prompt: list[int]) -> list[int]:
    """Greedy tokens up to and with the end."""
    tokens: list[int] = []
    model = load(path)
    for (token,) in replace(model, stop=frozenset()).stream([prompt], max_new_tokens=NEW):
        tokens.append(int(token))
        if tokens[-1] in model.stop:
            break
    return tokens


@pytest.mark.parametrize("kind", ["library", "no library", "unfused attention", "i8 cache", "i8-token cache"])
def test_the_same_greedy_tokens(
    kind: str, python: Path, demo_folder: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    if kind == "no library":
        export_model(demo_folder, path, ExportOptions(libraries="none"))
    elif kind.endswith(" cache"):
        export_model(demo_folder, path, ExportOptions(kv_cache="i8" if kind == "i8 cache" else "i8-token"))
    else:
        path = request.getfixturevalue("demo_artifact" if kind == "library" else "unfused_demo_artifact")
    result = generate(python, path.parent)
    assert result["tokens"] == ours(path, PROMPT)
    assert len(set(result["tokens"])) > 3  # type: ignore[call-overload]
    if sys.platform == "linux":
        assert bool(result["loaded"]) == (kind != "no library")


def test_the_chat_template(python: Path, demo_artifact: Path, tmp_path: Path) -> None:
    source = tmp_path / "model"
    shutil.copytree(DEMO, source, ignore=shutil.ignore_patterns("*.py", "README.md"))
    config = source / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": TEMPLATE}))
    path = tmp_path / "out" / "m.onnx"
    export_model(source, path)
    result = generate(python, path.parent, CHAT)
    tokenizer = AutoTokenizer.from_pretrained(path.parent)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert result["text"] == text == "<s>user: Where is Paris?\nassistant:"
    prompt = tokenizer.encode(text, add_special_tokens=False)
    assert result["prompt"] == prompt
    assert result["tokens"] == ours(path, prompt)


def test_what_genai_cannot_drive_gets_no_config(tmp_path: Path) -> None:
    from support.families import FAMILIES

    encoder = next(family for family in FAMILIES if family.encoder)
    encoder.save(tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out" / "m.onnx")
    assert not (tmp_path / "out" / "genai_config.json").exists()
