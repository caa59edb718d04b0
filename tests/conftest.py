"""Fixtures shared by unit, contract and integration tests."""

from __future__ import annotations

import copy
import functools
import gc
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from support.onnxruntime_header import download_headers

if TYPE_CHECKING:
    from graph_passes import FfnFormat
    from prosparse_models.training.sparsify_options import SparsifyOptions

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "models" / "demo"
COMMAND = [str(Path(sysconfig.get_path("scripts")) / "prosparse-export")]  # what a user types


def pytest_collection_finish() -> None:
    gc.freeze()  # imported modules stay: the collector need not walk them again and again


def pytest_runtest_setup() -> None:
    if "prosparse_export.export.trace" in sys.modules:
        _build_translations_once()


@functools.cache
def _build_translations_once() -> None:
    """Parse torch's translations to ONNX once per process, not once per export: a seventh of a small model's export."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    build = functools.cache(ONNXRegistry.from_torchlib)

    def from_torchlib(*arguments: object, **options: object) -> ONNXRegistry:
        registry = copy.copy(build(*arguments, **options))
        registry.functions = {name: list(found) for name, found in registry.functions.items()}  # exports add to it
        return registry

    ONNXRegistry.from_torchlib = staticmethod(from_torchlib)


@pytest.fixture(scope="session")
def demo_folder() -> Path:
    return DEMO


@contextmanager
def _once(tmp_path_factory: pytest.TempPathFactory, name: str) -> Iterator[Path]:
    """A folder that all workers of pytest-xdist share, locked, so that one of them fills it."""
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"shared-{name}"
    shared.mkdir(exist_ok=True)
    with FileLock(shared / "lock"):
        yield shared


@pytest.fixture(scope="session")
def demo_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, exported by the command line in a separate process, once for all workers."""
    with _once(tmp_path_factory, "demo") as shared:
        if not (shared / "out" / "demo.onnx").exists():
            subprocess.run([*COMMAND, str(DEMO), str(shared / "out" / "demo.onnx"), "-q"], check=True)
    return Path(shutil.copytree(shared / "out", tmp_path_factory.mktemp("demo") / "out")) / "demo.onnx"


@pytest.fixture(scope="session")
def onnxruntime_headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of onnxruntime_c_api.h and onnxruntime_cxx_api.h, downloaded once for all workers."""
    with _once(tmp_path_factory, "headers") as shared:
        found = next(shared.glob("x/**/onnxruntime_c_api.h"), None)
        return download_headers(shared) if found is None else found.parent


@pytest.fixture(scope="session")
def unfused_demo_artifact(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with attention in standard operators."""
    from prosparse_export import ExportOptions, export_model  # torch takes seconds to import

    output = tmp_path_factory.mktemp("unfused") / "demo.onnx"
    return export_model(demo_folder, output, ExportOptions(fuse_attention=False)).path


@pytest.fixture(scope="session")
def demo_nl4i8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with FFNs in nl4i8 and other matrices in nl4."""
    return _export_demo(tmp_path_factory.mktemp("nl4i8"), "nl4i8")


@pytest.fixture(scope="session")
def demo_f16(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model in f16."""
    return _export_demo(tmp_path_factory.mktemp("f16"), "f16")


def _export_demo(folder: Path, weights: FfnFormat) -> Path:
    from prosparse_export.export import ExportOptions, export_model  # torch takes seconds to import

    return export_model(
        DEMO, folder / "demo.onnx", ExportOptions(weights=weights, other_weights="nl4" if weights == "nl4i8" else None)
    ).path


@pytest.fixture
def run_cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``prosparse-export ARGUMENTS`` as a user would."""

    def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
        command = [*COMMAND, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]

    return run


# The fixtures of training import torch and transformers when they are used.


@pytest.fixture(scope="session")
def silu_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder before training."""
    from support.training_models import make_model_folder

    return make_model_folder(tmp_path_factory.mktemp("model") / "silu")


@pytest.fixture(scope="session")
def training_options(tmp_path_factory: pytest.TempPathFactory) -> SparsifyOptions:
    from support.training_models import make_text

    from prosparse_models.training.sparsify_options import SparsifyOptions

    folder = tmp_path_factory.mktemp("text")
    train, held_out = make_text(folder / "train.jsonl"), make_text(folder / "eval.jsonl", 8, 1000)
    return SparsifyOptions(text=[train], eval_text=[held_out], eval_tokens=512, log_every=1, save_every=7)


@pytest.fixture(scope="session")
def trained_folder(
    silu_folder: Path, training_options: SparsifyOptions, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The output of an uninterrupted run of RECIPE. Copy it before changing anything."""
    from support.training_runs import RECIPE, Notes

    from prosparse_models.training.sparsify import sparsify

    out = tmp_path_factory.mktemp("trained") / "out"
    notes = Notes()
    sparsify(silu_folder, out, RECIPE, training_options, notes)
    assert notes.moments == ["before", "substituted", "stage 0", "stage 1", "stage 2", "stage 3", "saved"]
    return out
