"""The graph passes alone, on a file that another exporter wrote."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graph_passes import FfnFormat, FfnOutcome, optimize_pipeline
from graph_passes.custom_ops import format_in, names
from prosparse_export.artifact.writer import (
    MANIFEST,
    Sidecars,
    artifact_folder,
    sha256_file,
    write_artifact,
    write_manifest,
)
from prosparse_export.errors import ProSparseError
from prosparse_export.optimize.check_outputs import check_outputs, has_halves
from prosparse_export.optimize.read_onnx import read_foreign_file
from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_export.runtime.operator_library import check_library, library_path

__all__ = ["OptimizeOptions", "OptimizeResult", "optimize_file"]

_DOMAIN = "com.prosparse"
_FUNCTIONS_SINCE = 8  # the IR version that brought functions


@dataclass(frozen=True)
class OptimizeOptions:
    """How to optimize.

    Attributes:
        overwrite: replace files that are in the way.
        allow_dense: write the file even if no feed-forward block became sparse.
        with_library: put the operator library beside the graph.
        weights: how the blocks' matrices are stored; None for the float type that they have. Anything else that
            rounds is named in the manifest, with the difference that it made.
        decomposed: write standard ONNX instead of our operators.
        check: compare the outputs with the source's; this runs both, which takes the memory that running takes.
    """

    overwrite: bool = False
    allow_dense: bool = False
    with_library: bool = True
    weights: FfnFormat | None = None
    decomposed: bool = False
    check: bool = True


@dataclass(frozen=True)
class OptimizeResult:
    """What was written.

    Attributes:
        path: the graph.
        rewritten: feed-forward blocks that became sparse operators.
        refused: those that did not, with their reasons.
        already: operators of ours that the file had before; they stay as they are.
        already_formats: in which formats their weights are and stay.
        manifest: contents of prosparse.json.
    """

    path: Path
    rewritten: tuple[FfnOutcome, ...]
    refused: tuple[FfnOutcome, ...]
    already: int
    already_formats: tuple[str, ...]
    manifest: dict[str, Any]


def optimize_file(
    source: Path,
    output: Path,
    options: OptimizeOptions | None = None,
    progress: ProgressCallback = no_progress,
) -> OptimizeResult:
    """Rewrite the feed-forward blocks of ``source`` into sparse operators and write ``output``.

    Weights are read one at a time, while they are written. The result is compared with the source in onnxruntime on
    made-up inputs, where the source runs on such.

    Raises:
        ProSparseError: the file cannot be read or written, no block can be sparse, or the outputs differ.
    """
    options = options or OptimizeOptions()
    source, output = Path(source), Path(output)
    if options.with_library and not options.decomposed:
        check_library()
    with artifact_folder(output, overwrite=options.overwrite) as staging:
        progress("load", 0, 0)
        model = read_foreign_file(source)
        ours = [node.op_type for node in model.graph if node.domain == _DOMAIN]
        if unknown := sorted(set(ours) - set(names())):
            raise ProSparseError(
                f"model: {source}: expected operators of {_DOMAIN} that this version knows, got {', '.join(unknown)}",
                hint="a newer version wrote it: upgrade prosparse-export",
            )
        already = [format_in(op) for op in ours]
        halves = has_halves(model)
        progress("rewrite", 0, 0)
        outcomes: list[FfnOutcome] = []
        with _without_log_lines():  # onnx's shape inference has opinions on other exporters' files
            optimize_pipeline(outcomes, weights=options.weights, decomposed=options.decomposed)(model)
        rewritten = tuple(o for o in outcomes if not o.reason)
        refused = tuple(o for o in outcomes if o.reason)
        if not rewritten and not already and not options.allow_dense:
            raise _nothing_rewritten(source, refused)
        if model.functions:
            model.ir_version = max(model.ir_version or 0, _FUNCTIONS_SINCE)
        progress("write", 0, 0)
        manifest = _manifest(source, model, outcomes, already, options)
        files = {}
        if options.with_library and not options.decomposed:
            files[library_path().name] = library_path()
        write_artifact(model, staging, output.name, Sidecars({MANIFEST: manifest}, files), progress)
        progress("check", 0, 0)
        manifest["check"] = {"outputs_compared": False, "reason": "not asked for (--no-check)"}
        if options.check:
            # Operators that were there run as their bodies in the source, so they do in the result.
            uses_library = options.with_library and not options.decomposed and not already
            manifest["check"] = check_outputs(
                source, staging / output.name, rewritten, options.weights, halves=halves, library=uses_library
            )
        write_manifest(staging, manifest)
        progress("publish", 0, 0)
    return OptimizeResult(output, rewritten, refused, len(already), tuple(sorted(set(already))), manifest)


@contextmanager
def _without_log_lines() -> Iterator[None]:
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)


def _nothing_rewritten(source: Path, refused: tuple[FfnOutcome, ...]) -> ProSparseError:
    reason = f"{refused[0].node}: {refused[0].reason}" if refused else "no feed-forward block was found"
    others = f" ({len(refused) - 1} more refused)" if len(refused) > 1 else ""
    return ProSparseError(
        f"model: {source}: no feed-forward block can be sparse: {reason}{others}",
        hint="this needs a model trained with ReLU; pass --allow-dense to write it anyway, with the list of reasons",
    )


def _manifest(
    source: Path, model: ir.Model, outcomes: list[FfnOutcome], already: Sequence[str], options: OptimizeOptions
) -> dict[str, Any]:
    rewritten = sum(not o.reason for o in outcomes)
    digest = sha256_file(source)  # the graph; its weights may be many GB
    return {
        "format": 1,
        "versions": {name: version(name) for name in ("prosparse-export", "onnx", "onnx-ir", "onnxruntime")},
        "source": {"file": source.name, "sha256": digest, "producer": model.producer_name or ""},
        "opset_imports": dict(sorted(model.opset_imports.items())),
        "weight_format": (options.weights if rewritten else None) or "as in the source",  # of the blocks rewritten
        "decomposed": options.decomposed,
        "ffn": {
            "rewritten": rewritten,
            "refused": sum(bool(o.reason) for o in outcomes),
            "already": len(already),
            "already_formats": sorted(set(already)),
            "layers": [vars(o) for o in outcomes],
        },
    }
