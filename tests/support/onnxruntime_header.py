"""onnxruntime's C and C++ headers, out of Debian's package: its wheels have none."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


def download_headers(folder: Path) -> Path:
    """Download Debian 13's libonnxruntime-dev (API 21) with apt's own folders, outside of the system's."""
    if shutil.which("apt-get") is None or not _KEYRING.is_file():
        pytest.skip("onnxruntime's header comes from Debian's package, which needs apt-get and Debian's keyring")
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sources = folder / "sources.list"
    sources.write_text(f"deb [signed-by={_KEYRING}] http://deb.debian.org/debian trixie main\n")
    options = [f"Dir::Etc::sourcelist={sources}", "Dir::Etc::sourceparts=/dev/null"]
    options += [f"Dir::State={folder / 'state'}", f"Dir::Cache={folder / 'cache'}", "APT::Sandbox::User=root"]
    flags = [part for option in options for part in ("-o", option)]
    for command in (["update"], ["download", "libonnxruntime-dev"]):
        done = subprocess.run(["apt-get", *flags, *command], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.skip(f"apt-get {command[0]} failed, is there a network? {done.stderr.strip()[-200:]}")
    subprocess.run(["dpkg", "-x", str(next(folder.glob("*.deb"))), str(folder / "x")], check=True)
    return next(folder.glob("x/**/onnxruntime_c_api.h")).parent
