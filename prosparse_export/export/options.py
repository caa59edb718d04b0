"""Options of an export, checked before the model is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from graph_passes import FORMAT_SPECS, FfnFormat, Format, format_of
from graph_passes.custom_ops import AccuracyLevel
from prosparse_export.artifact.accuracy_level import check_accuracy_level
from prosparse_export.errors import ProSparseError
from prosparse_export.runtime.installed_libraries import choose_libraries
from prosparse_export.runtime.operator_library import check_library

__all__ = ["Approximation", "ExportOptions", "check_options"]

_TOKENS = 32_768


@dataclass(frozen=True)
class Approximation:
    """Training-free activation sparsity for SwiGLU models (``--approximate``). LOSSY.

    Attributes:
        keep: fraction of neurons that stay active, in (0, 1).
        texts: representative text, UTF-8 files; sets the thresholds and measures their cost.
        activation: the activation to threshold; only silu is supported.
        tokens: maximum number of tokens to use.
    """

    keep: float
    texts: tuple[Path, ...]
    activation: str = "silu"
    tokens: int = _TOKENS


@dataclass(frozen=True)
class ExportOptions:
    """Options of `export_model`.

    Attributes:
        overwrite: replace existing files.
        allow_dense: write the artifact even if no FFN could be rewritten.
        fuse_attention: use onnxruntime's fused attention, RoPE and norm operators (onnxruntime >= 1.20).
        libraries: the operator libraries that go into lib/PLATFORM/ next to the graph: ``all`` that are installed,
            ``this`` platform's, ``none``, or a list of platforms separated by commas.
        trust_remote_code: run Python code from the model folder, for model types that transformers does not know.
        weights: storage format of the rewritten FFNs; None for the checkpoint's float type.
        other_weights: storage format of attention, lm_head and embedding; None for the same as ``weights`` (that of
            gate_proj).
        rounding: of i4 and nl4: ``nearest``, or ``compensated``, which makes later columns of a matrix make up for the
            errors of earlier ones; None for compensated with ``profile_texts`` or a budget.
        target_bytes: with i4 or nl4: store what gains most accuracy per byte in i8, up to this size of the artifact's
            graph and weights.
        max_ppl_increase: with i4 or nl4: likewise, up to this relative increase of perplexity.
        accuracy_level: 4 lets the kernels of integer formats hold activations with 8 bits. LOSSY, faster prompts.
        kv_cache: storage format of the KV cache. i8: onnxruntime's operator, >= 1.27, with scales found on text;
            i8-token: ours, with a scale per token. Both need fused attention. f32 uses our operator too.
        activation: the FFNs' activation (relu, relu2, fatrelu, drelu), if config.json states another one.
        threshold: FATReLU threshold, to set or override config.json's.
        decomposed: write standard ONNX operators instead of com.prosparse ones; attention is not fused either.
        profile_texts: representative text on which to measure each FFN's activation sparsity. FFNs that would gain
            nothing stay dense, and the manifest records the expected speedup. Also sets the scales of an 8-bit KV
            cache, which come from the bundled text otherwise.
        approximate: training-free sparsity for SwiGLU models. LOSSY: the manifest records its cost.
    """

    overwrite: bool = False
    allow_dense: bool = False
    fuse_attention: bool = True
    libraries: str = "all"
    trust_remote_code: bool = False
    weights: FfnFormat | None = None
    other_weights: Format | None = None
    rounding: Literal["nearest", "compensated"] | None = None
    target_bytes: int | None = None
    max_ppl_increase: float | None = None
    accuracy_level: AccuracyLevel = 0
    kv_cache: Literal["f32", "i8", "i8-token"] = "f32"
    activation: str | None = None
    threshold: float | None = None
    decomposed: bool = False
    profile_texts: tuple[Path, ...] = ()
    approximate: Approximation | None = None

    @property
    def has_budget(self) -> bool:
        """Whether formats are chosen by size or perplexity."""
        return self.target_bytes is not None or self.max_ppl_increase is not None

    @property
    def copies_library(self) -> bool:
        """Whether operator libraries go next to the graph."""
        return self.libraries != "none" and not self.decomposed


def check_options(folder: Path, output: Path, options: ExportOptions) -> None:
    """Check what can be checked without loading the model.

    Raises:
        ProSparseError: the output would overwrite the model folder, the operator library is missing, or the
            approximation's or the KV cache's options are invalid.
    """
    if output.parent.resolve() == folder.resolve():
        raise ProSparseError(
            f"output: {output}: expected a separate folder, got the model folder, whose config.json would be replaced",
            hint="choose another folder",
        )
    if options.copies_library:
        check_library()
        choose_libraries(options.libraries)
    if options.kv_cache != "f32" and (options.decomposed or not options.fuse_attention):
        raise ProSparseError(
            f"KV cache: {options.kv_cache}: requires fused attention",
            hint=f"omit {'--decomposed' if options.decomposed else '--attention unfused'}, or use --kv-cache f32",
        )
    if options.has_budget and (not _is_narrow(options.weights) or options.other_weights is not None):
        raise ProSparseError(
            "weights: a budget for size or perplexity chooses between 4 and 8 bits, "
            f"got {options.weights or 'checkpoint'}"
            + (f" and {options.other_weights} outside the FFNs" if options.other_weights is not None else ""),
            hint="pass --weights nl4 or i4, without --other-weights",
        )
    if options.target_bytes is not None and options.max_ppl_increase is not None:
        raise ProSparseError(
            "weights: expected one budget, got one for size and one for perplexity",
            hint="pass --target-size or --max-ppl-increase",
        )
    check_accuracy_level(options.accuracy_level, options.weights, options.other_weights)
    if options.approximate is not None:
        _check_approximation(options.approximate)


def _is_narrow(weights: FfnFormat | None) -> bool:
    """Return whether all matrices of an FFN have 4 bits."""
    return weights is not None and {FORMAT_SPECS[format_of(weights, is_down=d)].bits for d in (False, True)} == {4}


def _check_approximation(wanted: Approximation) -> None:
    if not wanted.texts:
        raise ProSparseError(
            "approximation: requires representative text, to set the thresholds and measure their cost",
            hint="pass --profile-text FILE",
        )
    if wanted.activation != "silu":
        raise ProSparseError(
            f"approximation: expected silu, got {wanted.activation!r}",
            hint="only silu can be approximated; a ReLU model needs no --approximate",
        )
    if not 0.0 < wanted.keep < 1.0:
        raise ProSparseError(
            f"approximation: keep: expected a fraction between 0 and 1, got {wanted.keep:g}",
            hint="0.5 keeps half of the neurons active",
        )
