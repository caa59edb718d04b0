"""Export a model folder to an ONNX artifact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from graph_passes import FfnOutcome
from prosparse_export.artifact.manifest import Manifest, write_manifest
from prosparse_export.artifact.writer import Sidecars, artifact_folder, write_artifact
from prosparse_export.errors import ProSparseError
from prosparse_export.export.check_logits import check_logits
from prosparse_export.export.decoder import rewrite_decoder
from prosparse_export.export.encoder_decoder import is_encoder_decoder, rewrite_encoder_decoder
from prosparse_export.export.file_hashes import FileHashes
from prosparse_export.export.options import ExportOptions, check_options
from prosparse_export.export.predicted_speedup import predict_speedup
from prosparse_export.export.rewritten_model import RewrittenModel
from prosparse_export.export.sidecars import export_manifest, export_sidecars
from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_export.runtime.encoder_decoder import encoder_path
from prosparse_export.text import read_text

__all__ = ["ExportResult", "export_model"]


@dataclass(frozen=True)
class ExportResult:
    """A finished export.

    Attributes:
        path: the graph.
        rewritten: the FFNs that became sparse operators.
        not_rewritten: the FFNs that stay dense, with their reasons.
        attention_not_fused: reasons why attention was not fused, one per layer.
        manifest: contents of prosparse.json.
        traced: how many layers were traced, or why all were.
        warnings: what makes the graph slower than it could be; lines for the user.
    """

    path: Path
    rewritten: tuple[FfnOutcome, ...]
    not_rewritten: tuple[FfnOutcome, ...]
    attention_not_fused: tuple[str, ...]
    manifest: Manifest
    traced: str = ""
    warnings: tuple[str, ...] = ()


def export_model(
    folder: Path, output: Path, options: ExportOptions | None = None, progress: ProgressCallback = no_progress
) -> ExportResult:
    """Export the model in ``folder`` to ``output``, an .onnx file.

    Next to it go ``OUT.onnx.data``, config.json, generation_config.json, the tokenizer, prosparse.json and the
    operator library. All files appear at the end, the graph last; if anything fails, nothing is written.

    Raises:
        ProSparseError: the folder cannot be read, the output cannot be written, no FFN could be rewritten, or the
            graph's logits differ from the model's.
    """
    options = options or ExportOptions()
    folder, output = Path(folder), Path(output)
    check_options(folder, output, options)
    texts = [(path.name, read_text(path)) for path in options.profile_texts]  # fails before minutes of work
    with artifact_folder(output, overwrite=options.overwrite) as staging, FileHashes() as hashes:
        progress("load", 0, 0)
        if is_encoder_decoder(folder):
            model = rewrite_encoder_decoder(folder, options, progress)
        else:
            model = rewrite_decoder(folder, options, texts, progress, hashes)
        if not model.rewritten and not options.allow_dense:
            raise _nothing_rewritten(folder, model)
        manifest = export_manifest(folder, output, model, options, hashes)
        manifest = _write(folder, staging / output.name, model, manifest, options, progress)
        progress("check", 0, 0)
        uses_library = options.copies_library and bool(manifest.operators)
        check_logits(model.checkpoint, staging / output.name, manifest, library=uses_library)
        if model.profile is not None and model.rewritten and uses_library:
            progress("time", 0, 0)
            speedup = predict_speedup(staging / output.name, model.profile, model.outcomes)
            manifest = replace(manifest, predicted_speedup=speedup)
            write_manifest(staging, manifest)
        progress("publish", 0, 0)
    return ExportResult(
        output,
        model.rewritten,
        model.not_rewritten,
        tuple(model.attention),
        manifest,
        model.traced,
        tuple(model.warnings),
    )


def _write(
    folder: Path,
    target: Path,
    model: RewrittenModel,
    manifest: Manifest,
    options: ExportOptions,
    progress: ProgressCallback,
) -> Manifest:
    """Write the graphs and the files next to them, then free the graphs; return the manifest with their hashes."""
    graph, *encoders = model.graphs
    progress("write", 0, 0)
    sidecars = export_sidecars(folder, target.name, model, manifest, options)
    for encoder in encoders:
        write_artifact(encoder, target.parent, encoder_path(target).name, Sidecars(), progress)
    files = write_artifact(graph, target.parent, target.name, sidecars, progress)
    model.graphs.clear()
    manifest = replace(manifest, files=files)
    write_manifest(target.parent, manifest)
    return manifest


def _nothing_rewritten(folder: Path, model: RewrittenModel) -> ProSparseError:
    found = model.not_rewritten
    reason = str(found[0]) if found else "no FFN was found"
    others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return ProSparseError(
        f"model folder: {folder}: no FFN could be rewritten: {reason}{others}",
        hint="use a model trained with ReLU, or pass --allow-dense to export this one as it is",
    )
