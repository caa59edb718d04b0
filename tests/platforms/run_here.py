"""Check the installed package on this machine against tokens that another machine wrote.

    python tests/platforms/run_here.py out/demo/demo.onnx expected.json --write    # where the artifact was exported
    python tests/platforms/run_here.py demo/demo.onnx expected.json                # on each platform

Needs what prosparse-runtime installs. The artifact is copied to a path with a space and Unicode, then decoded greedily
with every kernel variant of this processor, without the library, and with the artifact's own library registered in
onnxruntime by its path; `prosparse generate` and `prosparse info --verify` run as a user would.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import onnxruntime

import prosparse_export
from prosparse_export.artifact.libraries import library_in_artifact
from prosparse_export.artifact.platforms import this_platform
from prosparse_export.runtime.operator_library import library_info, library_path

PROMPT, TEXT, COUNT = [1, 5, 9], "The city of Paris is", 12


def decode(artifact: Path, *, library: bool, options: onnxruntime.SessionOptions | None = None) -> list[int]:
    """Return greedy tokens after `PROMPT`."""
    model = prosparse_export.load(artifact, library=library, session_options=options)
    return [int(step[0]) for step in model.stream([PROMPT], max_new_tokens=COUNT)]


def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``prosparse ARGUMENTS`` with more environment variables."""
    command = [str(Path(sysconfig.get_path("scripts")) / "prosparse"), *map(str, arguments)]
    environment = {**os.environ, "PYTHONUTF8": "1", **variables}
    return subprocess.run(command, capture_output=True, encoding="utf-8", check=False, env=environment)


def generate(artifact: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``prosparse generate``."""
    return run("generate", artifact, TEXT, "-n", COUNT, *more, **variables)


def check_commands(artifact: Path, text: str, scratch: Path) -> None:
    """Check ``prosparse info`` and ``prosparse generate`` with and without a usable library."""
    done = run("info", artifact, "--verify")
    assert done.returncode == 0, done.stderr
    for more in (["--require-library"], ["--no-library"]):
        done = generate(artifact, *more)
        assert (done.returncode, done.stdout) == (0, text), f"{more}: {done.returncode}: {done.stdout}{done.stderr}"
    damaged = scratch / library_path().name
    damaged.write_bytes(bytes(4096) + library_path().read_bytes()[4096:])
    done = generate(artifact, PROSPARSE_OPS_LIBRARY=str(damaged))
    assert done.returncode == 1, f"damaged: {done.returncode}: {done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    assert done.stderr.startswith(f"error: operator library: {damaged}: "), done.stderr
    print("prosparse info and generate: as expected; a damaged library is one line and exit code 1")


def check(artifact: Path, expected: dict[str, object]) -> None:
    """Run everything; an AssertionError says what differs."""
    for variant in library_info().isa_supported:
        os.environ["PROSPARSE_ISA"] = variant
        assert decode(artifact, library=True) == expected["tokens"], variant
        print(f"{this_platform()}: {COUNT} greedy tokens as expected, PROSPARSE_ISA={variant}", flush=True)
    del os.environ["PROSPARSE_ISA"]
    assert decode(artifact, library=False) == expected["tokens"], "function bodies"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(artifact.parent / library_in_artifact(this_platform())))
    assert decode(artifact, library=False, options=options) == expected["tokens"], "the artifact's library"
    print(f"{this_platform()}: the same from the function bodies, and with the artifact's own library")


def main() -> None:
    """Write or check the tokens."""
    artifact, file = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    if sys.argv[3:] == ["--write"]:
        values = {"tokens": decode(artifact, library=True), "text": generate(artifact).stdout}
        file.write_text(json.dumps(values), encoding="utf-8")
        return
    expected = json.loads(file.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:  # Windows: sessions map the weights
        copy = Path(shutil.copytree(artifact.parent, Path(scratch) / "a folder, äöü")) / artifact.name
        check(copy, expected)
        check_commands(copy, expected["text"], Path(scratch))
    print(f"{this_platform()}: passed, onnxruntime {onnxruntime.__version__}")


if __name__ == "__main__":
    main()
