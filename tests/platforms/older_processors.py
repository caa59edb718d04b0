"""Load the installed operator library on emulated x86-64 processors: what runs then must not need AVX-512.

python tests/platforms/older_processors.py      # needs qemu-x86_64: Debian's qemu-user
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

from prosparse_export.runtime.operator_library import library_path

LOAD = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
library.prosparse_ops_info.restype = ctypes.c_char_p
print(library.prosparse_ops_info().decode())
"""
SUPPORTED = {"Nehalem": ["scalar"], "Haswell": ["avx2", "scalar"]}


def library_info(processor: str, isa: str = "") -> dict[str, object]:
    """Return what the library says of itself on ``processor``."""
    command = [
        "qemu-x86_64",
        "-cpu",
        processor,
        os.path.realpath(sys.executable),
        "-I",
        "-c",
        LOAD,
        str(library_path()),
    ]
    environment = {**os.environ, "PROSPARSE_ISA": isa}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"{processor}: {done.returncode}: {done.stderr}"
    return dict(json.loads(done.stdout))


for name, supported in SUPPORTED.items():
    info = library_info(name)
    assert info["isa_supported"] == supported, f"{name}: {info}"
    assert info["isa_used"] == supported[0], f"{name}: {info}"
    forced = str(library_info(name, "avx512")["error"])
    assert forced.startswith("PROSPARSE_ISA=avx512 cannot run here"), f"{name}: {forced}"
    print(f"{name}: loads, runs {supported[0]}, refuses avx512")
