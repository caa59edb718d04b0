"""Build the wheels of every platform, and the sdist, from cross-built libraries.

    python packaging/libraries.py && python packaging/wheels.py        # into dist/

Each wheel contains the libraries of all platforms, so that an artifact exported anywhere runs everywhere; the tag only
says where this package has a library of its own. On other platforms pip builds the sdist.

prosparse_export-*.whl is the whole package. prosparse_runtime-*.whl has the same files but needs neither torch nor
transformers: it runs, serves and measures artifacts. Install one of the two.
"""

from __future__ import annotations

import argparse
import email
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import libraries
from wheel.wheelfile import WheelFile

ROOT = Path(__file__).parents[1]
TAGS = {
    "linux-x86_64": "manylinux_2_17_x86_64.manylinux2014_x86_64",
    "linux-aarch64": "manylinux_2_17_aarch64.manylinux2014_aarch64",
    "windows-x86_64": "win_amd64",
    "windows-arm64": "win_arm64",
    "macos-arm64": "macosx_14_0_arm64",
    "macos-x86_64": "macosx_13_0_x86_64",
}
RUNTIME = "prosparse-runtime"
RUNS_WITH = ("click", "jinja2", "numpy", "onnxruntime", "rich", "tokenizers")  # of the dependencies in pyproject.toml
BENCH = ("ml-dtypes", "onnx", "onnx-ir", "onnxscript")  # prosparse bench and report read graphs
RUNTIME_EXTRAS = ("serve", "genai")
MOST_BYTES = 15_000_000


def whole_wheel(prebuilt: Path, folder: Path) -> Path:
    """Build the whole package's wheel around prebuilt libraries; no compiler runs."""
    setting = f"--config-settings=cmake.define.PROSPARSE_PREBUILT={prebuilt.resolve()}"
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "-q", "-w", str(folder), setting]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def runtime_metadata(text: str) -> str:
    """Return METADATA for prosparse-runtime, made from the whole package's."""
    message = email.message_from_string(text)
    requirements = message.get_all("Requires-Dist", [])
    del message["Name"], message["Summary"], message["Requires-Dist"], message["Provides-Extra"]
    message["Name"] = RUNTIME
    message["Summary"] = "Run activation-sparse ONNX language models on CPUs, without torch"
    for requirement in requirements:
        name = requirement.replace(">", " ").replace("<", " ").replace("=", " ").split(";")[0].split()[0]
        extra = requirement.partition("extra == ")[2].strip("\"' ")
        if (not extra and name in RUNS_WITH) or extra in RUNTIME_EXTRAS:
            message["Requires-Dist"] = requirement
        if not extra and name in BENCH:
            message["Requires-Dist"] = f'{requirement}; extra == "bench"'
    for extra in ("bench", *RUNTIME_EXTRAS):
        message["Provides-Extra"] = extra
    return message.as_string()


def contents(wheel: Path, tag: str, *, runtime: bool) -> Iterator[tuple[str, bytes]]:
    """Yield the files of the wheel to write: those of ``wheel`` with its own metadata and tag."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            data = archive.read(name)
            if name.endswith("/RECORD"):
                continue  # WheelFile writes it
            if runtime and name.startswith("optimum/"):
                continue  # its command exports
            if name.endswith(".dist-info/WHEEL"):
                lines = [line for line in data.decode().splitlines() if line and not line.startswith("Tag:")]
                data = "\n".join([*lines, *(f"Tag: py3-none-{t}" for t in tag.split(".")), ""]).encode()
            if runtime and name.endswith(".dist-info/METADATA"):
                data = runtime_metadata(data.decode()).encode()
            if runtime and name.endswith(".dist-info/entry_points.txt"):
                data = b"[console_scripts]\nprosparse = prosparse_export.cli:main\n"
            yield name.replace("prosparse_export-", "prosparse_runtime-", 1) if runtime else name, data


def write_wheel(wheel: Path, tag: str, output: Path, *, runtime: bool) -> Path:
    """Write one platform's wheel of the whole package or of prosparse-runtime into ``output``."""
    version = wheel.name.split("-")[1]
    target = output / f"{'prosparse_runtime' if runtime else 'prosparse_export'}-{version}-py3-none-{tag}.whl"
    with WheelFile(str(target), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents(wheel, tag, runtime=runtime):
            archive.writestr(name, data)
    if target.stat().st_size > MOST_BYTES:
        sys.exit(f"error: {target}: expected at most {MOST_BYTES:,} bytes, got {target.stat().st_size:,}")
    return target


def main() -> None:
    """Build what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--libraries", type=Path, default=ROOT / "build" / "libraries", help="of packaging/libraries.py"
    )
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="default: dist")
    parser.add_argument("--no-sdist", action="store_true", help="Only the wheels.")
    args = parser.parse_args()
    missing = [name for name in libraries.TARGETS if not (args.libraries / name).is_dir()]
    if missing:
        sys.exit(f"error: {args.libraries}: no library for {', '.join(missing)}\nhint: python packaging/libraries.py")
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        wheel = whole_wheel(args.libraries, Path(folder))
        for tag in TAGS.values():
            for runtime in (False, True):
                path = write_wheel(wheel, tag, args.output, runtime=runtime)
                print(f"{path} ({path.stat().st_size:,} bytes)", flush=True)
    if not args.no_sdist:
        command = [sys.executable, "-m", "build", "--sdist", "--outdir", str(args.output), str(ROOT)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
