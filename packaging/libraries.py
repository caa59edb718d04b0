"""Cross-build the operator library with zig's clang: one machine, every platform.

    python packaging/libraries.py                                # all, into build/libraries/PLATFORM/
    python packaging/libraries.py windows-x86_64 linux-aarch64

Needs ziglang, cmake and ninja (`pip install -r packaging/requirements.txt`). A platform takes about a minute on two
idle cores; the first build of each also builds zig's libc++, which is then cached.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST_BYTES = 2_000_000
# glibc 2.17: older than any system that onnxruntime's wheels run on. macOS: the oldest that they run on.
TARGETS = {
    "linux-x86_64": "x86_64-linux-gnu.2.17",
    "linux-aarch64": "aarch64-linux-gnu.2.17",
    "windows-x86_64": "x86_64-windows-gnu",
    "windows-arm64": "aarch64-windows-gnu",
    "macos-arm64": "aarch64-macos.14.0",
    "macos-x86_64": "x86_64-macos.13.0",
}


def zig_executable() -> Path:
    """Return the zig executable of the ziglang package."""
    spec = find_spec("ziglang")
    if spec is None or spec.origin is None:
        sys.exit("error: ziglang is not installed\nhint: pip install -r packaging/requirements.txt")
    name = "zig.exe" if os.name == "nt" else "zig"
    return Path(spec.origin).with_name(name)


def build(platform: str, output: Path) -> Path:
    """Build the library of ``platform`` and copy it to ``output``/PLATFORM; return its path there."""
    folder = ROOT / "build" / "zig" / platform
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "ZIG_LOCAL_CACHE_DIR": str(ROOT / "build" / "zig" / "cache")}
    options = [
        f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'native' / 'cmake' / 'zig.cmake'}",
        f"-DPROSPARSE_ZIG={zig_executable()}",
        f"-DPROSPARSE_ZIG_TARGET={TARGETS[platform]}",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        sys.exit("error: cmake is not installed\nhint: pip install -r packaging/requirements.txt")
    for command in (
        [cmake, "-G", "Ninja", "-S", str(ROOT / "native"), "-B", str(folder), *options],
        [cmake, "--build", str(folder), "--target", "prosparse_ops"],
        [cmake, "--install", str(folder), "--prefix", str(folder / "install")],
    ):
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    (built,) = (folder / "install" / "prosparse_export" / "_ops" / platform).iterdir()
    target = output / platform / built.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(built, target)
    if target.stat().st_size > MOST_BYTES:
        sys.exit(f"error: {target}: expected at most {MOST_BYTES:,} bytes, got {target.stat().st_size:,}")
    return target


def main() -> None:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("platforms", nargs="*", metavar="PLATFORM", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "libraries", help="default: build/libraries")
    args = parser.parse_args()
    unknown = set(args.platforms) - set(TARGETS)
    if unknown:
        parser.error(f"unknown platform {', '.join(sorted(unknown))}: expected one of {', '.join(TARGETS)}")
    for platform in args.platforms or TARGETS:
        print(f"{platform}: building", file=sys.stderr, flush=True)
        library = build(platform, args.output)
        print(f"{platform}: {library} ({library.stat().st_size:,} bytes)", flush=True)


if __name__ == "__main__":
    main()
