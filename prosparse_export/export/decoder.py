"""Load, trace and rewrite a model with one graph: a decoder or an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from graph_passes import FfnOutcome, LinearOutcome, export_pipeline
from graph_passes.fuse_cached_attention import FuseCachedAttentionPass
from graph_passes.quantize_kv_cache import QuantizeKvCachePass, rotated_dims
from prosparse_export.artifact.measured_records import ApproximationRecord
from prosparse_export.artifact.model_settings import context_in
from prosparse_export.artifact.rounding_records import KvCacheRecord
from prosparse_export.errors import ProSparseError
from prosparse_export.export.approximate import approximate
from prosparse_export.export.choose_formats import plan_by_rule, plan_weights, short_text_warnings
from prosparse_export.export.file_hashes import FileHashes
from prosparse_export.export.kv_cache_scales import find_cache_scales
from prosparse_export.export.lazy_initializers import place_weights
from prosparse_export.export.load import load_model_folder
from prosparse_export.export.options import ExportOptions
from prosparse_export.export.predicted_speedup import profile_ffns, unprofitable_ffns
from prosparse_export.export.rewritten_model import RewrittenModel
from prosparse_export.export.sidecars import source_files
from prosparse_export.export.trace import Trace, trace
from prosparse_export.progress import ProgressCallback
from prosparse_export.text import read_text, tokenize
from prosparse_models import Checkpoint
from prosparse_models.loading.tokenizer import load_tokenizer

__all__ = ["rewrite_decoder"]

_FIRST_TOKENS = 256  # of each text, to see that there are enough


def rewrite_decoder(
    folder: Path,
    options: ExportOptions,
    texts: Sequence[tuple[str, str]],
    progress: ProgressCallback,
    hashes: FileHashes,
) -> RewrittenModel:
    """Load the model in ``folder``, trace it and run the graph passes.

    Args:
        folder: the model folder.
        options: see `ExportOptions`.
        texts: (name, contents) of ``options.profile_texts``.
        progress: called with each stage.
        hashes: started with the model's files.

    Raises:
        ProSparseError: the model cannot be loaded or traced, or an approximated FFN could not be rewritten.
    """
    checkpoint, traced, approximation = _traced(folder, options, texts, progress, hashes)
    graph = traced.graph
    profile = profile_ffns(checkpoint, folder, texts, progress) if texts else None
    formats = plan_by_rule(checkpoint, options)
    dense = unprofitable_ffns(profile, formats.ffn) if profile is not None else {}
    plan, rounding = plan_weights(checkpoint, folder, options, texts, progress, graph=graph.graph, dense=dense)
    progress("rewrite", 0, 0)
    outcomes: list[FfnOutcome] = []
    attention: list[str] = []
    linears: list[LinearOutcome] = []
    warnings = [] if rounding is None else short_text_warnings(rounding, plan, options)
    export_pipeline(
        outcomes,
        attention,
        fuse_attention=options.fuse_attention and not options.decomposed,
        decoder_only=checkpoint.model.get_output_embeddings() is not None,
        plan=plan,
        linears=linears,
        dense=dense,
        decomposed=options.decomposed,
        positions=context_in(checkpoint.config),
        warnings=warnings,
        level=options.accuracy_level,
    )(graph)
    kv_cache = _choose_cache(graph, checkpoint, folder, options, texts, attention, progress)
    result = RewrittenModel(
        checkpoint,
        [graph],
        outcomes,
        attention,
        plan,
        linears,
        rounding,
        approximation,
        profile,
        traced=traced.summary,
        kv_cache=kv_cache,
        warnings=warnings,
    )
    _check_approximation(folder, result)
    return result


def _check_approximation(folder: Path, result: RewrittenModel) -> None:
    """Raise unless every approximated FFN was rewritten."""
    approximation = result.approximation
    if approximation is not None and len(result.rewritten) < len(approximation.thresholds):
        found = result.not_rewritten
        raise ProSparseError(
            f"approximation: {folder}: expected {len(approximation.thresholds)} FFNs to be rewritten, got "
            f"{len(result.rewritten)}: {found[0] if found else 'the others were not found'}",
            hint="omit --approximate: the model would lose accuracy without gaining speed",
        )


def _choose_cache(
    graph: ir.Model,
    checkpoint: Checkpoint,
    folder: Path,
    options: ExportOptions,
    texts: Sequence[tuple[str, str]],
    not_fused: Sequence[str],
    progress: ProgressCallback,
) -> KvCacheRecord | None:
    """Give attention the requested KV cache; return the manifest's record of an 8-bit cache, or None."""
    if options.kv_cache == "f32":
        FuseCachedAttentionPass("F32")(graph)
        return None
    rotated = rotated_dims(graph.graph)
    if not rotated:
        reason = not_fused[0] if not_fused else "the model has no KV cache"
        raise ProSparseError(
            f"KV cache: {options.kv_cache}: {folder}: requires fused attention: {reason}",
            hint="use --kv-cache f32 for this model",
        )
    if options.kv_cache == "i8-token":
        FuseCachedAttentionPass("I8")(graph)
        return KvCacheRecord("i8-token", "token", len(rotated), {}, 0)
    if not texts and options.approximate is not None:
        texts = [(path.name, read_text(path)) for path in options.approximate.texts]
    scales = find_cache_scales(checkpoint, folder, texts, rotated, progress)
    QuantizeKvCachePass(scales.values)(graph)
    return scales.record


def _traced(
    folder: Path,
    options: ExportOptions,
    texts: Sequence[tuple[str, str]],
    progress: ProgressCallback,
    hashes: FileHashes,
) -> tuple[Checkpoint, Trace, ApproximationRecord | None]:
    """Load and trace the model, leaving its matrices in their files where possible.

    An approximation is measured on the model and needs all weights in memory; its record is the third result.
    """
    approximation = None
    for in_files in (True, False) if options.approximate is None else (False,):
        checkpoint = load_model_folder(
            folder,
            trust_remote_code=options.trust_remote_code,
            activation=options.activation,
            threshold=options.threshold,
            in_files=in_files,
        )
        hashes.start(source_files(folder, checkpoint))
        if texts:  # one that is too short fails before minutes of work
            tokenize(load_tokenizer(folder), texts, _FIRST_TOKENS * len(texts))
        if options.approximate is not None:
            approximation = approximate(checkpoint.model, folder, options.approximate, progress)
        progress("trace", 0, 0)
        traced = trace(checkpoint.model)
        if checkpoint.weights is None or not place_weights(traced.graph.graph, checkpoint.weights):
            break
    return checkpoint, traced, approximation
