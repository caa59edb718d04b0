"""Run the graph passes on an ONNX file from any exporter."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir

from graph_passes import FfnFormat, FfnOutcome, optimize_pipeline
from graph_passes.custom_ops import ATTENTION, DOMAIN, AccuracyLevel, format_in, names, operators_of
from prosparse_export.artifact.accuracy_level import check_accuracy_level
from prosparse_export.artifact.integrity import missing_model, sha256_file
from prosparse_export.artifact.manifest import FfnRecord, FileRecord, Manifest, OnnxFileSource, write_manifest
from prosparse_export.artifact.measured_records import OutputCheck
from prosparse_export.artifact.writer import Sidecars, artifact_folder, write_artifact
from prosparse_export.errors import ProSparseError
from prosparse_export.optimize.check_outputs import check_outputs, has_halves
from prosparse_export.optimize.read_onnx import read_onnx_file
from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_export.quiet import quiet
from prosparse_export.runtime.installed_libraries import choose_libraries, library_records
from prosparse_export.runtime.operator_library import check_library
from prosparse_export.runtime.weight_rounding import library_rounding

__all__ = ["OptimizeOptions", "OptimizeResult", "optimize_file"]

_FUNCTIONS_SINCE = 8  # first IR version with functions


@dataclass(frozen=True)
class OptimizeOptions:
    """Options of `optimize_file`.

    Attributes:
        overwrite: replace existing files.
        allow_dense: write the file even if no FFN could be rewritten.
        libraries: the operator libraries that go into lib/PLATFORM/ next to the graph: ``all`` that are installed,
            ``this`` platform's, ``none``, or a list of platforms separated by commas.
        weights: storage format of the rewritten FFNs; None for the float type that they have. The manifest names
            formats that round, and the difference that this made.
        decomposed: write standard ONNX operators instead of com.prosparse ones.
        check: compare the outputs with the source's. Runs both models, and needs the memory to run them.
        accuracy_level: 4 lets the kernels of integer formats hold activations with 8 bits. LOSSY, faster prompts.
    """

    overwrite: bool = False
    allow_dense: bool = False
    libraries: str = "all"
    weights: FfnFormat | None = None
    decomposed: bool = False
    check: bool = True
    accuracy_level: AccuracyLevel = 0

    @property
    def copies_library(self) -> bool:
        """Whether operator libraries go next to the graph."""
        return self.libraries != "none" and not self.decomposed


@dataclass(frozen=True)
class OptimizeResult:
    """A finished optimization.

    Attributes:
        path: the graph.
        rewritten: the FFNs that became sparse operators.
        not_rewritten: the FFNs that stay dense, with their reasons.
        already: number of com.prosparse operators that the source had; they are kept.
        already_formats: their weight formats.
        manifest: contents of prosparse.json.
    """

    path: Path
    rewritten: tuple[FfnOutcome, ...]
    not_rewritten: tuple[FfnOutcome, ...]
    already: int
    already_formats: tuple[str, ...]
    manifest: Manifest


def optimize_file(
    source: Path, output: Path, options: OptimizeOptions | None = None, progress: ProgressCallback = no_progress
) -> OptimizeResult:
    """Rewrite the FFNs of ``source`` into sparse operators and write ``output``.

    Weights are read one at a time as they are written. The result is compared with the source in onnxruntime on
    random inputs, if the source runs on them.

    Raises:
        ProSparseError: the file cannot be read or written, no FFN could be rewritten, or the outputs differ.
    """
    options = options or OptimizeOptions()
    source, output = Path(source), Path(output)
    check_accuracy_level(options.accuracy_level, options.weights)
    _check_paths(source, output)
    libraries = {}
    if options.copies_library:
        check_library()
        libraries = library_records(choose_libraries(options.libraries))
    with artifact_folder(output, overwrite=options.overwrite) as staging:
        progress("load", 0, 0)
        model = read_onnx_file(source)
        already = _formats_already(source, model)
        halves = has_halves(model)
        progress("rewrite", 0, 0)
        outcomes: list[FfnOutcome] = []
        with quiet():  # onnx's shape inference warns about other exporters' files
            optimize_pipeline(
                outcomes,
                weights=options.weights,
                decomposed=options.decomposed,
                rounding=library_rounding(),
                level=options.accuracy_level,
            )(model)
        rewritten = tuple(o for o in outcomes if not o.reason)
        not_rewritten = tuple(o for o in outcomes if o.reason)
        if not rewritten and not already and not options.allow_dense:
            raise _nothing_rewritten(source, not_rewritten)
        progress("write", 0, 0)
        manifest = _manifest(source, model, outcomes, already, options)
        files = _write(model, staging / output.name, options, progress)
        progress("check", 0, 0)
        if options.check:
            # com.prosparse operators run as function bodies in the source: without the library in the result too.
            library = options.copies_library and not already
            check = check_outputs(
                source, staging / output.name, rewritten, options.weights, halves=halves, library=library
            )
            manifest = replace(manifest, output_check=check)
        manifest = replace(manifest, files=files, libraries=libraries)
        write_manifest(staging, manifest)
        progress("publish", 0, 0)
    return OptimizeResult(output, rewritten, not_rewritten, len(already), tuple(sorted(set(already))), manifest)


def _check_paths(source: Path, output: Path) -> None:
    if source.is_dir():
        raise missing_model(source)
    if not source.is_file():
        raise ProSparseError(f"model: {source}: no such file", hint="check the path")
    if output.exists() and source.samefile(output):
        raise ProSparseError(
            f"output: {output}: expected a new file, got the input file", hint="choose another output file"
        )


def _formats_already(source: Path, model: ir.Model) -> list[str]:
    """Return the weight formats of the com.prosparse operators in ``model``."""
    ours = [node.op_type for node in model.graph if node.domain == DOMAIN]
    if unknown := sorted(set(ours) - set(names())):
        raise ProSparseError(
            f"model: {source}: expected {DOMAIN} operators of this version, got {', '.join(unknown)}",
            hint="upgrade prosparse-export: a newer version wrote this file",
        )
    return [format_in(op) for op in ours if op not in ATTENTION]


def _write(
    model: ir.Model, target: Path, options: OptimizeOptions, progress: ProgressCallback
) -> dict[str, FileRecord]:
    if model.functions:
        model.ir_version = max(model.ir_version or 0, _FUNCTIONS_SINCE)
    libraries = choose_libraries(options.libraries) if options.copies_library else {}
    return write_artifact(model, target.parent, target.name, Sidecars(libraries=libraries), progress)


def _nothing_rewritten(source: Path, found: Sequence[FfnOutcome]) -> ProSparseError:
    reason = f"{found[0].node}: {found[0].reason}" if found else "no FFN was found"
    others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return ProSparseError(
        f"model: {source}: no FFN could be rewritten: {reason}{others}",
        hint="use a model trained with ReLU, or pass --allow-dense to write it anyway and list all reasons",
    )


def _manifest(
    source: Path, model: ir.Model, outcomes: list[FfnOutcome], already: Sequence[str], options: OptimizeOptions
) -> Manifest:
    manifest = Manifest(
        source=OnnxFileSource(source.name, sha256_file(source), model.producer_name or ""),
        versions={name: version(name) for name in ("prosparse-export", "onnx", "onnx-ir", "onnxruntime")},
        opset_imports=dict(sorted(model.opset_imports.items())),
        operators=operators_of(model),
        ffns=tuple(FfnRecord(**vars(outcome)) for outcome in outcomes),
        decomposed=options.decomposed,
        already_sparse=dict(sorted(Counter(already).items())),
        output_check=OutputCheck(outputs_compared=False, reason="disabled by --no-check"),
    )
    return (
        replace(manifest, weight_format=options.weights, accuracy_level=options.accuracy_level)
        if manifest.rewritten
        else manifest
    )
