"""Write each engine's model once, and load engines by name."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from engines import Engine
from engines.onnxruntime_dense import GenAi, write_dense
from engines.ours import Ours
from graph_passes import FORMAT_SPECS, FfnFormat, format_of, is_quantized

__all__ = ["Loaded", "candidates", "opened", "peak", "reset_peak", "resident"]


@dataclass(frozen=True)
class Loaded:
    """An engine, with the time and memory that loading took."""

    name: str
    engine: Engine
    load_seconds: float
    resident_bytes: int
    file_bytes: int


def resident() -> int:
    """Return this process's resident bytes."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Let `peak` begin at what is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Return the most bytes that were resident since `reset_peak`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def size(path: Path) -> int:
    """Return the bytes of a model: one file, or a graph and its weights."""
    files = [path, path.with_name(f"{path.name}.data"), path.with_suffix(".bin")]
    return sum(file.stat().st_size for file in files if file.is_file())


def candidates(
    weights: FfnFormat, checkpoint: Path, ours: Path, decomposed: Path | None, work: Path, without: tuple[str, ...]
) -> dict[str, Path]:
    """Write the models that the engines need; return their paths by engine, ours first."""

    def wanted(name: str) -> bool:
        return name not in without

    result = {name: ours for name in ("ours", "dense baseline") if wanted(name)}
    folder = work / f"ort-{weights}"
    if wanted("onnxruntime") or wanted("onnxruntime-genai"):
        dense = folder / "model.onnx" if folder.is_dir() else write_dense(ours, folder)
        if wanted("onnxruntime"):
            result["onnxruntime"] = dense
        try:
            if wanted("onnxruntime-genai"):
                import onnxruntime_genai  # noqa: F401

                result["onnxruntime-genai"] = dense
        except ImportError as error:
            click.echo(f"skipped: onnxruntime-genai: {error}", err=True)
    bits = FORMAT_SPECS[format_of(weights, is_down=False)].bits
    kind = {4: "Q4_0", 8: "Q8_0", 16: "F16"}[bits]
    try:
        if wanted("llama.cpp"):
            import llama_cpp  # noqa: F401

            from engines.llama_cpp import write_gguf

            path = work / f"{kind}.gguf"
            result["llama.cpp"] = path if path.is_file() else write_gguf(checkpoint, path, kind)
    except (ImportError, OSError) as error:
        click.echo(f"skipped: llama.cpp: {error}", err=True)
    if decomposed is not None and is_quantized(weights) and wanted("OpenVINO"):
        try:
            from engines.openvino import write_openvino

            path = work / f"openvino-{weights}.xml"
            result["OpenVINO"] = path if path.is_file() else write_openvino(decomposed, path, bits)
        except ImportError as error:
            click.echo(f"skipped: OpenVINO: {error}", err=True)
    return result


def opened(name: str, path: Path, threads: int, context: int, *, llama_repacked: bool) -> Loaded:
    """Load an engine."""
    makers: dict[str, Callable[[], Engine]] = {
        "ours": lambda: Ours(path, threads),
        "ours, 8-bit cache": lambda: Ours(path, threads),
        "dense baseline": lambda: Ours(path, threads, dense=True),
        "onnxruntime": lambda: Ours(path, threads, library=False),
    }
    if name == "onnxruntime-genai":
        makers[name] = lambda: GenAi(path.parent, threads)
    elif name.startswith("llama.cpp"):
        from engines.llama_cpp import LlamaCpp

        makers[name] = lambda: LlamaCpp(path, threads, context, repacked=llama_repacked, cache_8_bits="q8_0" in name)
    elif name == "OpenVINO":
        from engines.openvino import OpenVino

        makers[name] = lambda: OpenVino(path, threads)
    gc.collect()
    before, began = resident(), time.perf_counter()
    engine = makers[name]()
    engine.prefill(np.arange(3, 11), 16)  # some read their weights in the first run
    return Loaded(name, engine, time.perf_counter() - began, resident() - before, size(path))
