"""Run the examples in other languages on one artifact: the tokens that Python gives.

    npm install --ignore-scripts --prefix NPM onnxruntime-node onnxruntime-web com.github.asus4.onnxruntime
    python tests/platforms/run_languages.py out/demo/demo.onnx NPM

Node and headless Chromium run examples/javascript. Mono (Debian's mono-mcs, mono-runtime) runs examples/csharp with the
library of Python's onnxruntime and its C# sources, which com.github.asus4.onnxruntime has. examples/java is compiled
against the classes in that package's Android archive; it has no Java runtime library for Linux, so it is not run. C and
C++ are in tests/integration/test_c_example.py. What lacks a tool is printed as NOT TESTED.
"""

from __future__ import annotations

import os
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

import onnxruntime
from csharp_sources import lower_sources

from prosparse_export import load
from prosparse_export.artifact.libraries import library_in_artifact
from prosparse_export.artifact.platforms import this_platform

ROOT = Path(__file__).parents[2]
PROMPT, COUNT = [1, 5, 9], 12
ARCHIVE = "com.github.asus4.onnxruntime/Plugins/Android/onnxruntime.aar"
SOURCES = "com.github.asus4.onnxruntime/Runtime"


def start(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with more environment variables."""
    words, environment = [*map(str, command)], {**os.environ, **variables}
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=300, env=environment)


def run(*command: object, **variables: str) -> str:
    """Run a command that must succeed; return its output."""
    done = start(*command, **variables)
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


def csharp(artifact: Path, modules: Path, scratch: Path) -> tuple[str, str]:
    """Decode in C# with the artifact's library; without a library, it must fail."""
    program, runtime = scratch / "generate.exe", scratch / "runtime"
    flags = ["-unsafe", "-langversion:latest", "-define:NETSTANDARD2_0", "-nowarn:219,1591", "-reference:System.Core"]
    sources = [ROOT / "examples" / "csharp" / "Generate.cs", *lower_sources(modules / SOURCES, scratch / "sources")]
    run("mcs", *flags, f"-out:{program}", *sources)
    runtime.mkdir()
    (found,) = Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*")
    (runtime / "libonnxruntime.so").symlink_to(found)  # the name that the sources look for
    library = artifact.parent / library_in_artifact(this_platform())
    words = run("mono", program, artifact, library, COUNT, *PROMPT, LD_LIBRARY_PATH=str(runtime))
    done = start("mono", program, artifact, scratch / "none", COUNT, *PROMPT, LD_LIBRARY_PATH=str(runtime))
    assert done.returncode != 0, f"a missing library: {done.stdout}"
    assert "OnnxRuntimeException" in done.stderr, done.stderr
    return f"C# {onnxruntime.__version__} in Mono", words


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
        languages = (
            ("onnxruntime-node", "node", "the function bodies", partial(node, site, modules, artifact.name)),
            ("onnxruntime-web", "node chromium", "the function bodies", partial(web, site, modules, artifact.name)),
            (SOURCES, "mcs mono", "the sparse kernels", partial(csharp, artifact, modules, Path(folder))),
        )
        for package, tools, path, decode in languages:
            missing = [tool for tool in tools.split() if shutil.which(tool) is None]
            if missing or not (modules / package).is_dir():
                print(f"{package}: NOT TESTED: needs {', '.join(missing) or package}", file=sys.stderr)
                continue
            runtime, words = decode()
            assert words.strip() == expected, f"{runtime}: {words}, not {expected}"
            print(f"{runtime}: {COUNT} greedy tokens as in Python, from {path}", flush=True)
        if shutil.which("javac") is None or not (modules / ARCHIVE).is_file():
            print(f"Java: NOT TESTED: needs javac and {ARCHIVE}", file=sys.stderr)
        else:
            java(Path(folder), modules)


if __name__ == "__main__":
    main()
