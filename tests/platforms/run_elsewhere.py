"""Run one artifact on other platforms: Windows under wine, aarch64 under qemu; read the libraries of the rest.

    python tests/platforms/run_elsewhere.py out/demo/demo.onnx build/libraries                  # all
    python tests/platforms/run_elsewhere.py out/demo/demo.onnx build/libraries linux-aarch64    # only this one

examples/c/generate.c, compiled for each platform by zig or a cross compiler, loads onnxruntime's library out of that
platform's wheel, registers the operator library and decodes greedily: the same tokens as here, also without the
library, and where the library is another platform's or damaged. For want of a tool, a platform is NOT TESTED. For macOS
and Windows on arm64, what their loaders would check is read from the files.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from prosparse_export import load
from prosparse_export.artifact.platforms import LIBRARY_FILES
from prosparse_export.runtime.operator_library import library_path

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".venv" / "runtimes" / "elsewhere"  # between runs
PROMPT, COUNT, RUNTIME = (1, 5, 9), 12, "1.32.0"
# onnxruntime's cpuinfo does not survive another processor's /proc/cpuinfo: a Neoverse N1 with one core.
CPUINFO = """processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x3
CPU part\t: 0xd0c
CPU revision\t: 1
"""


@dataclass(frozen=True)
class Platform:
    """A platform that an emulator runs: its wheel's tag and runtime library, zig's name for it, a cross compiler."""

    name: str
    wheel: str
    runtime: str
    zig: str
    gcc: str
    link: str
    emulator: str
    variants: tuple[str, ...]


PLATFORMS = (
    Platform(
        "windows-x86_64",
        "win_amd64",
        "onnxruntime.dll",
        "x86_64-windows-gnu",
        "x86_64-w64-mingw32-gcc",
        "-lshell32",
        "wine",
        ("",),
    ),
    Platform(
        "linux-aarch64",
        "manylinux_2_28_aarch64",
        f"libonnxruntime.so.{RUNTIME}",
        "aarch64-linux-gnu.2.28",
        "aarch64-linux-gnu-gcc",
        "-ldl",
        "qemu-aarch64",
        ("", "neon"),
    ),
)


def fetch_runtime(platform: Platform, folder: Path) -> Path:
    """Return onnxruntime's library for ``platform``, downloaded once into ``folder``."""
    target = folder / platform.name / platform.runtime
    folder.mkdir(parents=True, exist_ok=True)
    if not target.is_file():
        with tempfile.TemporaryDirectory() as wheels:
            flags = ["--no-deps", "--only-binary=:all:", "--platform", platform.wheel, "--python-version", "3.12"]
            command = [sys.executable, "-m", "pip", "download", "-q", *flags, "-d", wheels, f"onnxruntime=={RUNTIME}"]
            subprocess.run(command, check=True)
            (wheel,) = Path(wheels).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                data = archive.read(f"onnxruntime/capi/{platform.runtime}")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return target


def compile_example(platform: Platform, folder: Path) -> Path:
    """Compile examples/c/generate.c for ``platform`` into ``folder``."""
    target = folder / "generate.exe"
    zig = [sys.executable, "-m", "ziglang", "cc", f"--target={platform.zig}"]
    command = zig if find_spec("ziglang") else [platform.gcc]
    source = str(ROOT / "examples" / "c" / "generate.c")
    subprocess.run([*command, "-std=c11", "-O2", "-s", source, "-o", str(target), platform.link], check=True)
    return target


def emulator(platform: Platform, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return the command that runs the platform's programs, and its environment."""
    if platform.emulator == "wine":
        environment = {"WINEPREFIX": str(KEPT / "wine"), "WINEDEBUG": "-all"}
        subprocess.run(["wine", "wineboot", "--init"], env={**os.environ, **environment}, check=False, timeout=300)
        return ["wine"], environment
    system = folder / "system"
    for name, text in {"proc/cpuinfo": CPUINFO, "possible": "0\n", "present": "0\n"}.items():
        path = system / (name if "/" in name else f"sys/devices/system/cpu/{name}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (system / "lib").symlink_to("/usr/aarch64-linux-gnu/lib")
    return ["qemu-aarch64", "-cpu", "max", "-L", str(system)], {}


def check(platform: Platform, artifact: Path, libraries: Path, expected: list[int], scratch: Path) -> None:
    """Run ``artifact`` on ``platform``, with and without a usable library."""
    runtime = fetch_runtime(platform, KEPT)
    program = compile_example(platform, scratch)
    command, environment = emulator(platform, scratch)
    own = libraries / platform.name / LIBRARY_FILES[platform.name]
    model = scratch / "a folder, äöü" / artifact.name
    shutil.copytree(artifact.parent, model.parent)

    def run(library: Path, variant: str = "", *more: str) -> subprocess.CompletedProcess[str]:
        words = [str(runtime), str(model), str(library), str(COUNT), *map(str, PROMPT), *more]
        values = {**os.environ, **environment, **({"PROSPARSE_ISA": variant} if variant else {})}
        return subprocess.run(
            [*command, str(program), *words], capture_output=True, text=True, env=values, check=False, timeout=600
        )

    for variant in platform.variants:
        done = run(own, variant, "--require-library")
        assert done.returncode == 0, f"{platform.name}: {done.returncode}: {done.stderr}"
        assert [*map(int, done.stdout.split())] == expected, f"{platform.name}: {done.stdout}, not {expected}"
        print(f"{platform.name}: {COUNT} greedy tokens as here, PROSPARSE_ISA={variant or 'unset'}", flush=True)
    damaged, other = scratch / own.name, library_path()
    damaged.write_bytes(bytes(4096) + own.read_bytes()[4096:])
    for problem, library in {"missing": scratch / "none", "another platform's": other, "damaged": damaged}.items():
        done = run(library, "", "--require-library")
        assert done.returncode == 1, f"{platform.name}, {problem}: {done.returncode}: {done.stderr}"
        assert "error: " in done.stderr, done.stderr
        print(f"{platform.name}: {problem} library: refused with --require-library", flush=True)
    done = run(damaged)
    assert [*map(int, done.stdout.split())] == expected, f"{platform.name}: dense: {done.stdout}{done.stderr}"
    assert "dense function bodies run instead" in done.stderr, done.stderr
    print(f"{platform.name}: damaged library: the same tokens from the function bodies", flush=True)


def missing_tool(platform: Platform, libraries: Path) -> str | None:
    """Return what is needed to run ``platform`` and is not there."""
    if not (libraries / platform.name).is_dir():
        return str(libraries / platform.name)
    if find_spec("ziglang") is None and shutil.which(platform.gcc) is None:
        return f"ziglang or {platform.gcc}"
    return None if shutil.which(platform.emulator) else platform.emulator


def check_unrun(libraries: Path, wanted: Sequence[str]) -> None:
    """Check the libraries that nothing here can run, as far as they are wanted and there."""
    names = [name for name in ("windows-arm64", "macos") if name in wanted and any(libraries.glob(f"{name}*"))]
    if names and find_spec("lief") is None:
        print(f"{', '.join(names)}: NOT TESTED: needs lief", file=sys.stderr)
        return
    if names:
        from unrun_libraries import check_macos, check_windows

        for name in names:
            (check_macos if name == "macos" else check_windows)(libraries)


def main() -> None:
    """Check each platform whose tools are there."""
    names = [*(platform.name for platform in PLATFORMS), "windows-arm64", "macos"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("libraries", type=Path, help="folder of PLATFORM/FILE")
    parser.add_argument("platforms", nargs="*", metavar="PLATFORM", help=f"of {', '.join(names)}; default: all")
    args = parser.parse_args()
    unknown = set(args.platforms) - set(names)
    if unknown:
        parser.error(f"unknown platform {', '.join(sorted(unknown))}: expected some of {', '.join(names)}")
    wanted, artifact, libraries = args.platforms or names, args.artifact.resolve(), args.libraries.resolve()
    expected = [int(step[0]) for step in load(artifact).stream([list(PROMPT)], max_new_tokens=COUNT)]
    untested = ran = 0
    for platform in PLATFORMS:
        missing = missing_tool(platform, libraries) if platform.name in wanted else None
        if missing is not None:
            print(f"{platform.name}: NOT TESTED: needs {missing}", file=sys.stderr)
            untested += 1
        elif platform.name in wanted:
            with tempfile.TemporaryDirectory() as scratch:
                check(platform, artifact, libraries, expected, Path(scratch))
            ran += 1
    check_unrun(libraries, wanted)
    if ran > 0 and untested == 0:
        print("platforms: the same tokens on all that can be emulated and were asked for")


if __name__ == "__main__":
    main()
