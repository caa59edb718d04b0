"""`validate`: run PyTorch, the dense baseline and the sparse artifact on the same tokens, and check the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from prosparse_export.analysis.activation_counts import measure_activity
from prosparse_export.analysis.unknown_operators import unknown_to_the_library
from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_export.quiet import quiet
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.operator_library import check_library
from prosparse_export.text import BUNDLED, default_text, tokenize
from prosparse_export.validation.checks import (
    Sparsity,
    determinism_check,
    exactness_checks,
    layer_checks,
    limit_checks,
)
from prosparse_export.validation.comparison_text import ComparisonText, plan_text
from prosparse_export.validation.determinism import check_determinism
from prosparse_export.validation.exactness import Comparison, Expected, run_all
from prosparse_export.validation.explain import explain
from prosparse_export.validation.findings import Finding, weight_findings
from prosparse_export.validation.metrics import Quality, QualitySum
from prosparse_export.validation.operator_checks import OperatorCheck, StoredWeights, check_operators, operators_in
from prosparse_export.validation.options import ValidationOptions
from prosparse_export.validation.provenance import describe_artifact, versions_in_use
from prosparse_export.validation.quantization_ablation import QuantizationCost, quantization_costs
from prosparse_export.validation.reference import Reference
from prosparse_export.validation.reference_runs import ReferenceRuns
from prosparse_export.validation.result import Validation
from prosparse_export.validation.stage_clock import StageClock
from prosparse_export.validation.validation_target import ValidationTarget, open_target
from prosparse_models import Checkpoint
from prosparse_models.loading.tokenizer import load_tokenizer

__all__ = ["validate"]

_EXPLAINED = 48  # tokens to explain, at least


def validate(
    folder: Path,
    path: Path,
    options: ValidationOptions | None = None,
    *,
    text: str | None = None,
    texts: Sequence[tuple[str, str]] | None = None,
    trust_remote_code: bool = False,
    progress: ProgressCallback = no_progress,
) -> Validation:
    """Compare the artifact ``path`` with the model in ``folder``, in every way of running it.

    Args:
        folder: the model folder that ``path`` was exported from.
        path: the artifact.
        options: what to compare.
        text: the text to compare on; None for the bundled text.
        texts: several texts as (name, text), instead of ``text``.
        trust_remote_code: run Python code in ``folder`` for model types that transformers does not know.
        progress: called with each stage.

    Raises:
        ProSparseError: a model cannot be read, the artifact was exported from another model, or the text is too short.
    """
    options = options or ValidationOptions()
    clock = StageClock(progress)
    target = open_target(Path(folder), Path(path), trust=trust_remote_code)
    check_library()
    given = texts or [(BUNDLED, default_text()) if text is None else ("text", text)]
    with quiet():
        documents = tokenize(load_tokenizer(target.folder), given, options.tokens)
    with torch.no_grad():
        return _Run(target, options, plan_text(documents, options, target.positions), clock).result()


@dataclass(frozen=True)
class _Outcome:
    """What running the models gave."""

    runs: tuple[Comparison, ...]
    bound: float
    against: str
    quality: tuple[Quality, Quality]
    greedy_match: tuple[int, ...]
    greedy_tokens: int


class _Run:
    """One validation, stage by stage; one model in memory at a time, logits on disk."""

    def __init__(
        self, target: ValidationTarget, options: ValidationOptions, text: ComparisonText, clock: StageClock
    ) -> None:
        self.target, self.text, self.clock = target, text, clock
        self.options = replace(options, greedy=text.greedy)
        self.operators: tuple[OperatorCheck, ...] = ()
        self.weights: StoredWeights | None = None

    def result(self) -> Validation:
        """Run all stages."""
        target, options, clock = self.target, self.options, self.clock
        outcome = self._compare()
        clock("repeated runs")
        repeated = check_determinism(str(target.path), self.text.windows, threads=options.threads, whole=options.repeat)
        sparsity = self._sparsity()
        unknown = tuple(unknown_to_the_library(target.graph))
        count = operators_in(target.graph)
        checks = exactness_checks(outcome.runs, outcome.bound, self.operators, self.weights, unknown, count)
        findings = self._layer_findings()
        if findings is not None:
            checks += layer_checks(findings, len(self.text.windows[0].ids[: options.operator_tokens]))
        checks.append(determinism_check(repeated))
        limits = limit_checks(options.limits, outcome.quality[1], sparsity, outcome.greedy_match, outcome.greedy_tokens)
        exact = all(c.passed for c in checks)
        explained = options.explain and not all(c.passed for c in checks + limits)
        found: tuple[Finding, ...] = tuple(findings or ())
        costs: tuple[QuantizationCost, ...] = ()
        if explained:
            found = self._explain(outcome.runs, found)
        if options.explain and exact and target.lossy:
            costs = self._quantization_costs(self.text.windows[0].ids)
        clock("done")
        return Validation(
            comparisons=outcome.runs,
            max_abs_diff=outcome.bound,
            exact_against=outcome.against,
            quality=outcome.quality,
            lossy=target.lossy,
            greedy_match=outcome.greedy_match,
            greedy_tokens=outcome.greedy_tokens,
            sparsity=sparsity,
            operators=self.operators,
            determinism=repeated,
            unknown_operators=unknown,
            checks=(*checks, *limits),
            stored_weights=self.weights,
            findings=found,
            quantization_costs=costs,
            explained=explained,
            tokens=outcome.quality[1].tokens,
            texts={d.name: d.sha256 for d in self.text.documents},
            artifact=describe_artifact(target.path, target.weights),
            versions=versions_in_use(),
            seconds=clock.seconds,
        )

    def _compare(self) -> _Outcome:
        """Run the reference models and the artifact, without and with the library."""
        target, clock = self.target, self.clock
        references = ReferenceRuns(target, self.options, self.text, clock)
        original, exact = references.pytorch(self._check_operators)
        try:
            without, with_library = QualitySum("without library"), QualitySum("with library")
            against = "PyTorch with the stored weights" if target.lossy else "PyTorch"
            against += " and thresholds" if target.approximation is not None else ""
            against += ", KV cache rounded to 8 bits" if target.cache_scales else ""
            runs: list[Comparison] = []
            if exact is None:  # PyTorch lacks the stored weights, so the operators' function bodies are the reference
                against = "the artifact without the library"
                exact = references.dense_baseline(original, without)
                expected = self._expected(exact)
            else:
                expected = self._expected(exact)
                dense = SparseModel.open(target.path, library=False, threads=self.options.threads)
                runs, _ = run_all(dense, "without library", expected, without, original, clock)
                del dense
            sparse = SparseModel.open(target.path, library=True, threads=self.options.threads)
            found, matches = run_all(sparse, "with library", expected, with_library, original, clock)
            greedy = min(self.options.greedy, len(original.continuations[0].greedy))
            quality = (without.result(), with_library.result())
            return _Outcome((*found, *runs), expected.bound, against, quality, tuple(matches), greedy)
        finally:
            original.file.close()
            if exact is not None:
                exact.file.close()

    def _expected(self, exact: Reference) -> Expected:
        chosen = self.options.max_abs_diff
        bound = self.target.bound(exact.largest) + exact.cache_rounding if chosen is None else chosen
        return Expected(exact, self.text.windows, bound, self.options)

    def _check_operators(self, checkpoint: Checkpoint) -> None:
        if self.options.operator_tokens:
            ids = self.text.windows[0].ids[: self.options.operator_tokens]
            self.operators, self.weights = check_operators(
                checkpoint, self.target, ids, threads=self.options.threads, progress=self.clock
            )

    def _sparsity(self) -> Sparsity | None:
        target = self.target
        if not target.nodes:
            return None
        texts = [d.ids for d in self.text.documents]
        threads = self.options.threads
        activity = measure_activity(target.path, texts, context=self.text.context, threads=threads, progress=self.clock)
        layers = tuple(node.layer for node in target.nodes)
        if len(set(layers)) < len(layers):  # a module that runs twice
            layers = tuple(range(len(layers)))
        by_layer = tuple(layer.sparsity for layer in activity.layers)
        return Sparsity(activity.sparsity, by_layer, len(activity.texts), layers)

    def _layer_findings(self) -> list[Finding] | None:
        """Compare values between operators with PyTorch where thresholds make the logits' bound wide; else None."""
        if not self.target.crossings or not self.options.operator_tokens:
            return None
        self.clock("layers")
        checkpoint = self.target.load(low_memory=True)
        ids = self.text.windows[0].ids[: self.options.operator_tokens]
        return explain(checkpoint, self.target, ids, threads=self.options.threads, progress=self.clock)

    def _explain(self, runs: Sequence[Comparison], found: tuple[Finding, ...]) -> tuple[Finding, ...]:
        """Return all findings."""
        target, clock = self.target, self.clock
        clock("explain")
        ids = self._ids_to_explain(runs)
        checkpoint = target.load(low_memory=True)
        found = found or tuple(explain(checkpoint, target, ids, threads=self.options.threads, progress=clock))
        return (*weight_findings(self.operators, self.weights), *found)

    def _quantization_costs(self, ids: NDArray[np.int64]) -> tuple[QuantizationCost, ...]:
        target, checkpoint = self.target, self.target.load(low_memory=True)
        return quantization_costs(
            checkpoint, target.rounded, ids, target.approximation, target.cache_scales, self.clock
        )

    def _ids_to_explain(self, runs: Sequence[Comparison]) -> NDArray[np.int64]:
        """Return the text up to the first token beyond its bound, and at least 48 tokens where the window has them."""
        windows = self.text.windows
        row = next((c.first for c in runs if not c.passed and c.first >= 0), 0)
        for window in windows:
            count = len(window.ids) - window.first
            if row < count:
                return window.ids[: max(window.first + row + 1, _EXPLAINED)]
            row -= count
        return windows[0].ids[:_EXPLAINED]
