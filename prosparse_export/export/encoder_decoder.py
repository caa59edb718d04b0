"""Load, trace and rewrite an encoder-decoder (T5, M2M-100): two graphs in one artifact."""

from __future__ import annotations

from pathlib import Path

from graph_passes import FfnOutcome, WeightPlan, export_pipeline
from prosparse_export.errors import ProSparseError
from prosparse_export.export.load import load_model_folder
from prosparse_export.export.options import ExportOptions
from prosparse_export.export.rewritten_model import RewrittenModel
from prosparse_export.export.rounded_reference import checkpoint_format
from prosparse_export.export.trace_encoder_decoder import trace_encoder_decoder
from prosparse_export.progress import ProgressCallback
from prosparse_export.runtime.weight_rounding import library_rounding
from prosparse_models import CheckpointError
from prosparse_models.loading.model_config import read_model_config

__all__ = ["is_encoder_decoder", "rewrite_encoder_decoder"]


def is_encoder_decoder(folder: Path) -> bool:
    """Return whether config.json describes an encoder-decoder with a language model head."""
    try:
        values = read_model_config(folder).values
    except CheckpointError:
        return False  # loading reports it
    architecture = str(next(iter(values.get("architectures") or []), ""))
    return bool(values.get("is_encoder_decoder")) and not architecture.endswith("Model")


def rewrite_encoder_decoder(folder: Path, options: ExportOptions, progress: ProgressCallback) -> RewrittenModel:
    """Load the model in ``folder``, trace encoder and decoder, and rewrite their FFNs.

    Attention becomes MultiHeadAttention, and matrices outside the FFNs stay float32.

    Raises:
        ProSparseError: the model cannot be loaded or traced, or an option does not apply to encoder-decoders.
    """
    _check_options(folder, options)
    checkpoint = load_model_folder(
        folder,
        trust_remote_code=options.trust_remote_code,
        activation=options.activation,
        threshold=options.threshold,
        encoder_decoder=True,
    )
    weights = options.weights or checkpoint_format(checkpoint.weight_dtype)
    plan = WeightPlan(weights, "f32", rounding=library_rounding())
    progress("trace", 0, 0)
    encoder, decoder = trace_encoder_decoder(checkpoint.model)
    progress("rewrite", 0, 0)
    outcomes: list[FfnOutcome] = []
    attention: list[str] = []
    for graph in (encoder, decoder):
        export_pipeline(
            outcomes,
            attention,
            fuse_attention=options.fuse_attention and not options.decomposed,
            decoder_only=False,
            plan=plan,
            decomposed=options.decomposed,
            level=options.accuracy_level,
        )(graph)
    traced = "traced all layers: encoder-decoders are traced whole"
    return RewrittenModel(checkpoint, [decoder, encoder], outcomes, attention, plan, traced=traced)


def _check_options(folder: Path, options: ExportOptions) -> None:
    if options.approximate is not None:
        raise ProSparseError(
            f"approximation: {folder}: expected a decoder-only model, got an encoder-decoder",
            hint="omit --approximate",
        )
    if options.profile_texts:
        raise ProSparseError(
            f"profile text: {folder}: expected a decoder-only model, got an encoder-decoder",
            hint="omit --profile-text: it predicts the speed of decoder-only models",
        )
    if options.kv_cache != "f32":
        raise ProSparseError(
            f"KV cache: {options.kv_cache}: {folder}: expected a decoder-only model, got an encoder-decoder",
            hint="use --kv-cache f32",
        )
    if options.other_weights not in (None, "f32"):
        raise ProSparseError(
            f"weights: {folder}: expected f32 outside the FFNs of an encoder-decoder, got {options.other_weights}",
            hint="pass --weights alone: it applies to the FFNs",
        )
    if options.has_budget or options.rounding == "compensated":
        raise ProSparseError(
            f"weights: {folder}: expected a decoder-only model for budgets and compensated rounding, got an "
            "encoder-decoder",
            hint="omit --target-size, --max-ppl-increase, and --rounding",
        )
