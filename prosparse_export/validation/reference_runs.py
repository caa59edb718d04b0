"""Run the models that an artifact is compared with: PyTorch, or the artifact's own dense baseline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from prosparse_export.export.approximate import approximate_again
from prosparse_export.export.rounded_cache import cache_rounding
from prosparse_export.export.rounded_reference import as_stored
from prosparse_export.runtime.model import SparseModel
from prosparse_export.validation import reference as ref
from prosparse_export.validation.comparison_text import ComparisonText
from prosparse_export.validation.metrics import QualitySum
from prosparse_export.validation.options import ValidationOptions
from prosparse_export.validation.stage_clock import StageClock
from prosparse_export.validation.validation_target import ValidationTarget
from prosparse_models import Checkpoint

__all__ = ["ReferenceRuns"]


class ReferenceRuns:
    """Computes the reference logits of one validation; only one model is in memory at a time."""

    def __init__(
        self, target: ValidationTarget, options: ValidationOptions, text: ComparisonText, clock: StageClock
    ) -> None:
        self._target, self._options, self._text, self._clock = target, options, text, clock
        self._metadata = ref.fingerprint(text.windows, text.documents, target.sources, target.overrides)

    def pytorch(self, inspect: Callable[[Checkpoint], None]) -> tuple[ref.Reference, ref.Reference | None]:
        """Run PyTorch with the checkpoint's own weights and with the stored ones.

        Args:
            inspect: called once with the checkpoint while its weights are its own.

        Returns:
            both references, the same one twice if the weights are stored as they are. The second is None if they are
            not and the first comes from a file: then only the artifact has the stored weights.
        """
        target, options, clock = self._target, self._options, self._clock
        if options.reference is not None:
            prompts = len(self._text.prompts)
            original = ref.open_reference(options.reference, self._metadata, prompts, self._text.greedy)
            inspect(target.load(low_memory=True))
            return original, None if target.lossy else original
        clock("load the PyTorch model")
        checkpoint = target.load(low_memory=options.low_memory)
        with as_stored(checkpoint, {}):
            original = self._run(ref.torch_forward(checkpoint.model), "PyTorch", options.save_reference)
        inspect(checkpoint)
        if not target.lossy:
            return original, original
        with as_stored(checkpoint, target.formats):
            if target.approximation is not None:
                approximate_again(checkpoint.model, target.approximation)
            forward = ref.torch_forward(checkpoint.model, target.cache_scales)
            stored = self._run(forward, "PyTorch, stored weights", None)
            if target.cache_scales:
                stored = replace(stored, cache_rounding=self._cache_rounding(checkpoint, stored))
            return original, stored

    def _cache_rounding(self, checkpoint: Checkpoint, rounded: ref.Reference) -> float:
        """Return `cache_rounding` on the first window."""
        self._clock("PyTorch, float32 KV cache")
        window, logits = next(iter(rounded.rows(self._text.windows)))
        unrounded, _ = ref.torch_forward(checkpoint.model)(window.ids, None, False)
        return cache_rounding(logits, unrounded[window.first :])

    def dense_baseline(self, original: ref.Reference, quality: QualitySum) -> ref.Reference:
        """Run the artifact without the library and add its logits, against ``original``, to ``quality``."""
        dense = SparseModel.open(self._target.path, library=False, threads=self._options.threads)
        baseline = self._run(ref.artifact_forward(dense), "without library", None)
        windows = self._text.windows
        for (window, actual), (_, expected) in zip(baseline.rows(windows), original.rows(windows), strict=True):
            quality.add(actual, expected, window.targets)
        return baseline

    def _run(self, forward: ref.Forward, stage: str, save_to: Path | None) -> ref.Reference:
        return ref.run_reference(
            forward,
            self._text.windows,
            self._text.prompts,
            self._text.greedy,
            self._metadata,
            save_to=save_to,
            scratch=self._target.path.parent,
            stage=stage,
            progress=self._clock,
        )
