"""Environments of their own for packages of others, kept between runs."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

FOLDER = Path(__file__).parents[2] / ".venv" / "runtimes"


def environment(name: str, packages: Sequence[str], *, ours: bool = False) -> Path:
    """Return the Python of an environment with ``packages``.

    Args:
        name: of its folder.
        packages: requirements, with their dependencies unless ``ours``.
        ours: the dependencies are our own environment's packages, which it sees behind ``packages``.

    Raises:
        RuntimeError: pip cannot install them; says what it said.
    """
    folder = FOLDER / f"{name}-py{sys.version_info.major}{sys.version_info.minor}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(FOLDER / f"{folder.name}.lock"):  # several workers, one environment
        if not (folder / "ready").is_file():
            venv.create(folder, clear=True)  # without a pip of its own, which takes seconds
            options = ["--no-deps"] if ours else []
            install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *options, *packages]
            done = subprocess.run(install, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(done.stderr)
            if ours:
                site = next(folder.glob("[Ll]ib*/**/site-packages"))
                paths = [path for path in sys.path if path.endswith("site-packages")]
                (site / "ours.pth").write_text("\n".join(paths) + "\n")
            (folder / "ready").touch()
    return python
