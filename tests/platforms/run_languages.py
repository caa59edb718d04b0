"""Run the examples in other languages on one artifact: the tokens that Python gives.

    npm install --ignore-scripts --prefix NPM onnxruntime-node onnxruntime-web com.github.asus4.onnxruntime
    python tests/platforms/run_languages.py out/demo/demo.onnx NPM

Node and headless Chromium run examples/javascript. examples/java is compiled against the classes of onnxruntime's
Android archive, which com.github.asus4.onnxruntime has; it has no Java runtime library for Linux, so it is not run.
C and C++ are in tests/integration/test_c_example.py. What cannot be tested for lack of a tool is printed as NOT TESTED.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from prosparse_export import load

ROOT = Path(__file__).parents[2]
PROMPT, COUNT = [1, 5, 9], 12
ARCHIVE = "com.github.asus4.onnxruntime/Plugins/Android/onnxruntime.aar"


def run(*command: object, timeout: int = 300) -> str:
    """Run a command that must succeed; return its output."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, timeout=timeout)
    assert done.returncode == 0, f"{command[0]}: {done.returncode}: {done.stdout[-1000:]}{done.stderr[-1000:]}"
    return done.stdout


def node(site: Path, modules: Path, model: str) -> tuple[str, str]:
    """Decode in Node."""
    version = run("node", "-p", f"require({str(modules / 'onnxruntime-node/package.json')!r}).version").strip()
    words = run("node", site / "generate.mjs", site / "model" / model, COUNT, *PROMPT)
    return f"onnxruntime-node {version}", words


class Quiet(SimpleHTTPRequestHandler):
    """Serve files without a log."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def web(site: Path, modules: Path, model: str) -> tuple[str, str]:
    """Decode in headless Chromium."""
    version = run("node", "-p", f"require({str(modules / 'onnxruntime-web/package.json')!r}).version").strip()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    query = f"model=model/{model}&count={COUNT}&prompt={','.join(map(str, PROMPT))}"
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=100000", "--dump-dom"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        page = run(
            "chromium",
            *flags,
            f"--user-data-dir={profile}",
            f"http://127.0.0.1:{server.server_port}/index.html?{query}",
        )
    server.shutdown()
    found = re.search(r'<pre id="tokens">(.*?)</pre>', page, re.DOTALL)
    assert found is not None, page[-1000:]
    return f"onnxruntime-web {version} in Chromium", found[1]


def java(scratch: Path, modules: Path) -> None:
    """Compile the Java example."""
    with zipfile.ZipFile(modules / ARCHIVE) as archive:
        (scratch / "onnxruntime.jar").write_bytes(archive.read("classes.jar"))
    flags = ["-Xlint:all", "-Werror", "-cp", scratch / "onnxruntime.jar", "-d", scratch / "classes"]
    run("javac", *flags, ROOT / "examples" / "java" / "Generate.java")
    print("Java: compiled; NOT RUN: needs onnxruntime's Java library of this platform")


def main() -> None:
    """Run what can run."""
    artifact, modules = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve() / "node_modules"
    expected = " ".join(str(step[0]) for step in load(artifact).stream([PROMPT], max_new_tokens=COUNT))
    with tempfile.TemporaryDirectory() as folder:
        site = Path(shutil.copytree(ROOT / "examples" / "javascript", Path(folder) / "site"))
        shutil.copytree(artifact.parent, site / "model")
        (site / "node_modules").symlink_to(modules)
        for decode, tools, package in ((node, "node", "onnxruntime-node"), (web, "node chromium", "onnxruntime-web")):
            missing = [tool for tool in tools.split() if shutil.which(tool) is None]
            if missing or not (modules / package).is_dir():
                print(f"{package}: NOT TESTED: needs {', '.join(missing) or package}", file=sys.stderr)
                continue
            runtime, words = decode(site, modules, artifact.name)
            assert words.strip() == expected, f"{runtime}: {words}, not {expected}"
            print(f"{runtime}: {COUNT} greedy tokens as in Python, from the function bodies", flush=True)
        if shutil.which("javac") is None or not (modules / ARCHIVE).is_file():
            print(f"Java: NOT TESTED: needs javac and {ARCHIVE}", file=sys.stderr)
        else:
            java(Path(folder), modules)


if __name__ == "__main__":
    main()
