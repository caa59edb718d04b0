"""Install what `make wheels` built, as a user does: how long it takes, how large it is, whether it runs.

    python tests/platforms/install.py dist out/demo/demo.onnx

Wheels are installed with nothing but the new environment on PATH: no compiler, no cmake. The sdist has the PATH of this
machine, because it compiles the operator library. Each then generates the same text as here. Times include downloads.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

from packaging.tags import sys_tags
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parents[2]
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "clang++", "cl", "cmake", "make", "ninja", "zig")
GENERATE = ("generate", "{artifact}", "The city of Paris is", "-n", "12", "--require-library")

BENCH = ("-q", "--context", "8", "--tokens", "4", "--prefill", "4", "--rounds", "3")
SERVE = ("-q", "--serve", "--clients", "1", "--requests", "2", "--prompt", "8", "--answer", "4")


ELSEWHERE = sys.prefix  # in a checkout, `python -m prosparse_export` would take the sources, without a library


def run(*command: object, path: str) -> str:
    """Run a command that must succeed, with ``path`` as PATH and none of this environment's PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PROSPARSE_"))}
    environment["PATH"] = path
    words = [*map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment, cwd=ELSEWHERE)
    assert done.returncode == 0, f"{command[0]}: {done.returncode}: {done.stdout[-1000:]}{done.stderr[-1000:]}"
    return done.stdout


def seconds(*command: object, path: str) -> float:
    """Return how long a command takes that must succeed."""
    start = time.perf_counter()
    run(*command, path=path)
    return time.perf_counter() - start


def megabytes(folder: Path) -> float:
    """Return the size of all files below ``folder``."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def check(package: Path, artifact: Path, text: str, folder: Path) -> None:
    """Install ``package`` into a new environment in ``folder``, run it, and print what it costs."""
    venv.create(folder, with_pip=True)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    bare, runtime = package.suffix == ".whl", package.name.startswith("prosparse_runtime")
    path = str(scripts) if bare else f"{scripts}{os.pathsep}{os.environ['PATH']}"
    found = [tool for tool in COMPILERS if bare and shutil.which(tool, path=path)]
    assert found == [], found
    (site,) = folder.rglob("site-packages")
    before, constraints = megabytes(site), ROOT / "constraints.txt"
    took = seconds(scripts / "python", "-m", "pip", "install", "-q", "-c", constraints, package, path=path)
    assert (site / "torch").exists() != runtime, "torch is for the export"
    run(scripts / "prosparse", "info", artifact, "--verify", path=path)
    words = [word.format(artifact=artifact) for word in GENERATE]
    printed = run(scripts / "prosparse", *words, path=path)
    assert printed == text, f"{package.name}: {printed!r}, not {text!r}"
    starts = [seconds(scripts / "prosparse", "generate", "--help", path=path) for _ in range(10)][1:]
    how = "no compiler on PATH" if bare else "compiled"
    print(f"{package.name}: {package.stat().st_size:,} bytes, installed: {megabytes(site) - before:.0f} MB")
    print(f"  pip install {took:.1f} s, {how}; the same text as here")
    start = f"{statistics.median(starts):.2f} s [{min(starts):.2f}, {max(starts):.2f}]"
    print(f"  prosparse generate --help {start}", flush=True)
    if runtime:
        run(scripts / "python", "-m", "pip", "install", "-q", "-c", constraints, f"{package}[bench,serve]", path=path)
        run(scripts / "prosparse", "bench", artifact, *BENCH, path=path)
        run(scripts / "prosparse", "bench", artifact, *SERVE, path=path)
        print(
            f"  with [bench,serve]: {megabytes(site) - before:.0f} MB; prosparse bench runs, a server answers",
            flush=True,
        )


def main() -> None:
    """Install the wheels of this platform and the sdist."""
    dist, artifact = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    words = [word.format(artifact=artifact) for word in GENERATE]
    command = [sys.executable, "-m", "prosparse_export", *words]
    text = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ELSEWHERE).stdout
    tags = set(sys_tags())
    packages = [path for path in sorted(dist.glob("*.whl")) if parse_wheel_filename(path.name)[3] & tags]
    packages += dist.glob("*.tar.gz")
    assert len(packages) == 3, f"{dist}: expected two wheels for this machine and an sdist, got {packages}"
    for package in packages:
        with tempfile.TemporaryDirectory() as folder:
            check(package, artifact, text, Path(folder) / "environment")


if __name__ == "__main__":
    main()
