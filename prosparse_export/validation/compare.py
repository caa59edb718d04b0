"""`validate`: the reference, the dense twin and the sparse artifact on the same tokens, and the verdict."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from prosparse_export.analysis.activation_counts import measure_activity
from prosparse_export.analysis.unknown_operators import unknown_to_the_library
from prosparse_export.artifact.integrity import sha256_file
from prosparse_export.errors import ProSparseError
from prosparse_export.export.approximate import approximate_again
from prosparse_export.export.rounded_reference import as_stored
from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_export.quiet import quiet
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.operator_library import check_library, library_info
from prosparse_export.text.windows import BUNDLED, Document, Window, default_text, tokenize, windows
from prosparse_export.validation import reference as ref
from prosparse_export.validation.determinism import check_determinism
from prosparse_export.validation.exactness import Comparison, Expected, run_all
from prosparse_export.validation.explain import Finding, explain
from prosparse_export.validation.metrics import QualitySum
from prosparse_export.validation.operator_checks import (
    OperatorCheck,
    StoredWeights,
    check_operators,
    layer_of,
    operators_in,
)
from prosparse_export.validation.options import ValidationOptions
from prosparse_export.validation.quantization_ablation import RoundingCost, rounding_costs
from prosparse_export.validation.result import Check, Sparsity, Validation, check_limits
from prosparse_export.validation.validation_target import Subject, open_subject
from prosparse_models import Checkpoint
from prosparse_models.loading.tokenizer import load_tokenizer

__all__ = ["validate"]

_EXPLAINED = 48  # tokens


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
    """Compare ``path`` with the model in ``folder``, in every way of running it.

    Args:
        folder: the model folder that ``path`` was exported from.
        path: the artifact.
        options: what to compare.
        text: what to compare on; None for the bundled text.
        texts: several, as (name, text); instead of ``text``.
        trust_remote_code: let Python code in ``folder`` run, for model types unknown here.
        progress: called with each stage.

    Raises:
        ProSparseError: a model cannot be read, the artifact is another model's, or the text is too short.
    """
    options = options or ValidationOptions()
    clock = _Clock(progress)
    subject = open_subject(Path(folder), Path(path), trust=trust_remote_code)
    check_library()
    given = texts or [(BUNDLED, default_text()) if text is None else ("text", text)]
    with quiet():
        documents = tokenize(load_tokenizer(subject.folder), given, options.tokens)
    with torch.no_grad():
        return _Run(subject, options, documents, clock).result()


class _Clock:
    """Passes progress on and adds up the time of each stage."""

    def __init__(self, progress: ProgressCallback) -> None:
        self._progress, self._stage, self._began = progress, "", time.perf_counter()
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, done: int = 0, total: int = 0, detail: str = "") -> None:
        if stage != self._stage:
            now = time.perf_counter()
            if self._stage:
                self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + now - self._began, 3)
            self._stage, self._began = stage, now
        self._progress(stage, done, total, detail)


class _Run:
    """One validation, stage by stage: never more than one model in memory, logits on disk."""

    def __init__(self, subject: Subject, options: ValidationOptions, documents: list[Document], clock: _Clock) -> None:
        self.subject, self.documents, self.clock = subject, documents, clock
        context = min(options.context, subject.positions or options.context, max(len(d.ids) for d in documents))
        stride = options.stride or max(context // 2, 1)
        if stride > context:
            raise ProSparseError(
                f"stride: expected at most the context, {context}, got {stride}", hint="a token between would not count"
            )
        self.context = context
        self.windows: list[Window] = list(windows(documents, context, stride))
        self.prompts = ref.cut_prompts(documents, max(options.prompts, 1), context)
        room = (subject.positions or context + options.greedy) - max(map(len, self.prompts))
        self.options = replace(options, greedy=min(options.greedy, room))
        self.metadata = ref.fingerprint(self.windows, documents, subject.sources, subject.overrides)
        self.operators: tuple[OperatorCheck, ...] = ()
        self.weights: StoredWeights | None = None
        self.findings: tuple[Finding, ...] = ()
        self.roundings: tuple[RoundingCost, ...] = ()

    def result(self) -> Validation:
        """Run all stages."""
        s, options, clock = self.subject, self.options, self.clock
        original, exact = self._references()
        try:
            sum_without, sum_with = QualitySum("without library"), QualitySum("with library")
            against = "PyTorch with the stored weights" if s.lossy else "PyTorch"
            against += " and thresholds" if s.approximation is not None else ""
            runs: list[Comparison] = []
            if exact is None:  # nothing but the artifact has the rounded weights: its bodies are the reference
                against = "the artifact without the library"
                exact = self._dense_twin(original, sum_without)
                bound = self._bound(exact)
            else:
                bound = self._bound(exact)
                expected = Expected(exact, self.windows, bound, options)
                dense = SparseModel.open(s.path, library=False, threads=options.threads)
                runs, _ = run_all(dense, "without library", expected, sum_without, original, clock)
                del dense
            expected = Expected(exact, self.windows, bound, options)
            sparse = SparseModel.open(s.path, library=True, threads=options.threads)
            found, matches = run_all(sparse, "with library", expected, sum_with, original, clock)
            del sparse
            runs = found + runs
        finally:
            original.file.close()
            if exact is not None:
                exact.file.close()
        clock("same bits again")
        repeated = check_determinism(str(s.path), self.windows, threads=options.threads, whole=options.repeat)
        sparsity = None
        if s.nodes:
            texts = [d.ids for d in self.documents]
            activity = measure_activity(s.path, texts, context=self.context, threads=options.threads, progress=clock)
            by_layer = tuple(layer.sparsity for layer in activity.layers)
            numbers = tuple(node.layer for node in s.nodes)
            if len(set(numbers)) < len(numbers):  # a module that runs twice
                numbers = tuple(range(len(numbers)))
            sparsity = Sparsity(activity.sparsity, by_layer, len(activity.texts), numbers)
        unknown = tuple(unknown_to_the_library(s.graph))
        quality = (sum_without.result(), sum_with.result())
        checks = [Check(c.name, _measured(c), f"at most {bound:.3g} on logits, same tokens", c.passed) for c in runs]
        checks += self._operator_checks(unknown)
        checks += self._layer_checks()
        again = repeated.first or f"{repeated.tokens} tokens"
        checks.append(Check("same bits in every run", again, "no differing bit", repeated.passed))
        exactly = all(check.passed for check in checks)
        limits = check_limits(options.limits, quality[1], sparsity, tuple(matches), self._greedy(original))
        explained = options.explain and not all(c.passed for c in checks + limits)
        if explained:
            lost = exactly and any(check.about_quality and not check.passed for check in limits)
            self._explain(runs, lost=lost)
        checks += limits
        clock("done")
        return Validation(
            comparisons=tuple(runs),
            max_abs_diff=bound,
            exact_against=against,
            quality=quality,
            lossy=s.lossy,
            greedy_match=tuple(matches),
            greedy_tokens=self._greedy(original),
            sparsity=sparsity,
            operators=self.operators,
            determinism=repeated,
            unknown_operators=unknown,
            checks=tuple(checks),
            stored_weights=self.weights,
            findings=self.findings,
            roundings=self.roundings,
            explained=explained,
            tokens=quality[1].tokens,
            texts={d.name: d.sha256 for d in self.documents},
            artifact=_describe(s.path, s.weights),
            versions=_versions(),
            seconds=clock.seconds,
        )

    def _greedy(self, original: ref.Reference) -> int:
        return min(self.options.greedy, len(original.continuations[0].greedy))

    def _bound(self, exact: ref.Reference) -> float:
        if self.options.max_abs_diff is not None:
            return self.options.max_abs_diff
        return self.subject.bound(exact.largest)

    def _references(self) -> tuple[ref.Reference, ref.Reference | None]:
        """PyTorch with its own weights and with the stored ones; the second is None if only the artifact has them."""
        s, options, clock = self.subject, self.options, self.clock
        if options.reference is not None:
            original = ref.open_reference(options.reference, self.metadata, len(self.prompts), options.greedy)
            self._check_operators(s.load(low_memory=True))
            return original, None if s.lossy else original
        clock("load PyTorch's model")
        checkpoint = s.load(low_memory=options.low_memory)
        with as_stored(checkpoint, {}):
            original = self._torch(checkpoint.model, "PyTorch", options.save_reference)
        self._check_operators(checkpoint)
        if not s.lossy:
            return original, original
        with as_stored(checkpoint, s.formats):
            if s.approximation is not None:
                approximate_again(checkpoint.model, s.approximation)
            return original, self._torch(checkpoint.model, "PyTorch, stored weights", None)

    def _torch(self, model: PreTrainedModel, stage: str, target: Path | None) -> ref.Reference:
        return self._reference(ref.torch_forward(model), stage, target)

    def _reference(self, forward: ref.Forward, stage: str, target: Path | None) -> ref.Reference:
        return ref.run_reference(
            forward,
            self.windows,
            self.prompts,
            self.options.greedy,
            self.metadata,
            target=target,
            scratch=self.subject.path.parent,
            stage=stage,
            progress=self.clock,
        )

    def _dense_twin(self, original: ref.Reference, quality: QualitySum) -> ref.Reference:
        dense = SparseModel.open(self.subject.path, library=False, threads=self.options.threads)
        twin = self._reference(ref.artifact_forward(dense), "without library", None)
        for (window, actual), (_, expected) in zip(twin.rows(self.windows), original.rows(self.windows), strict=True):
            quality.add(actual, expected, window.targets)
        return twin

    def _check_operators(self, checkpoint: Checkpoint) -> None:
        if self.options.operator_tokens:
            ids = self.windows[0].ids[: self.options.operator_tokens]
            threads = self.options.threads
            self.operators, self.weights = check_operators(
                checkpoint, self.subject, ids, threads=threads, progress=self.clock
            )

    def _operator_checks(self, unknown: tuple[str, ...]) -> list[Check]:
        checks = [
            Check("operators in the library", ", ".join(unknown) + " missing" if unknown else "all", "all", not unknown)
        ]
        for o in self.operators:
            if not o.passed:
                got = f"{o.worst:.3g} times its bound" if not o.worst <= 1 else "results right"
                got += f"; not the checkpoint's weights: {', '.join(o.wrong_weights)}" if o.wrong_weights else ""
                where = "" if o.layer is None else f"layer {o.layer}: "
                checks.append(Check(f"{where}{o.op} ({o.module})", got, "float64 within its bound", False))
        if self.operators:
            passed = [o for o in self.operators if o.passed]
            worst = max(o.worst for o in self.operators)
            got = f"{len(passed)} of {len(self.operators)}, worst {worst:.2g} times its bound"
            if missing := operators_in(self.subject.graph) - len(self.operators):
                got += f"; {missing} more have no module to compare with"
            all_passed = len(passed) == len(self.operators)
            checks.append(Check("operators against float64", got, "within their bounds", all_passed))
        if (w := self.weights) is not None:
            got = f"{', '.join(w.wrong)} are not" if w.wrong else f"{w.compared} initializers, {w.share:.1%} of bytes"
            checks.append(Check("stored weights", got, "the checkpoint's, bit for bit", not w.wrong))
        return checks

    def _layer_checks(self) -> list[Check]:
        """Hold what lies between operators to PyTorch too, where logits have a wide bound: an activation jumps."""
        s, options = self.subject, self.options
        if not s.flips or not options.operator_tokens:
            return []
        self.clock("layers")
        ids = self.windows[0].ids[: options.operator_tokens]
        self.findings = tuple(explain(s.load(low_memory=True), s, ids, threads=options.threads, progress=self.clock))
        name, allowed = "layers against PyTorch", "within their bounds"
        found: dict[str, Finding] = {}
        for finding in self.findings:  # of several runs the first
            found.setdefault(f"{finding.where}: {finding.op}", finding)
        wrong = [
            Check(where, f"{f.difference:.3g}, {f.run}", f"at most {f.bound:.3g}", False) for where, f in found.items()
        ]
        got = f"{len(found)} places beyond" if found else f"{len(ids)} tokens in six ways of running"
        return [*wrong, Check(name, got, allowed, not found)]

    def _explain(self, runs: Sequence[Comparison], *, lost: bool) -> None:
        s, threads = self.subject, self.options.threads
        self.clock("explain")
        checkpoint = s.load(low_memory=True)
        ids = self._ids_to_explain(runs)
        found = self.findings or tuple(explain(checkpoint, s, ids, threads=threads, progress=self.clock))
        wrong = [
            Finding(name, o.layer, o.op, o.module, -1, math.nan, 0.0)
            for o in self.operators
            for name in o.wrong_weights
        ]
        others = self.weights.wrong if self.weights is not None else ()
        wrong += [Finding(name, layer_of(name), "initializer", "", -1, math.nan, 0.0) for name in others]
        self.findings = (*wrong, *found)
        if lost and s.lossy:  # all is computed as it should be
            self.roundings = rounding_costs(s.load(low_memory=True), s.rounded, ids, s.approximation, self.clock)

    def _ids_to_explain(self, runs: Sequence[Comparison]) -> NDArray[np.int64]:
        """Return the text up to the first token that was found wrong; 48 tokens at least, where there are so many."""
        row = next((c.first for c in runs if not c.passed and c.first >= 0), 0)
        for window in self.windows:
            count = len(window.ids) - window.first
            if row < count:
                return window.ids[: max(window.first + row + 1, _EXPLAINED)]
            row -= count
        return self.windows[0].ids[:_EXPLAINED]


def _measured(c: Comparison) -> str:
    return f"{c.max_abs_diff:.3g}, {c.top1_differs} top-1 and {c.greedy_differs} greedy tokens differ"


def _describe(path: Path, weights: str) -> dict[str, Any]:
    data = path.with_name(path.name + ".data")
    described: dict[str, Any] = {"name": path.name, "sha256": sha256_file(path), "weights": weights}
    size = path.stat().st_size
    if data.is_file():
        size += data.stat().st_size
        described |= {"data_sha256": sha256_file(data), "data_bytes": data.stat().st_size}
    return {**described, "bytes": size}


def _versions() -> dict[str, str]:
    library = library_info()
    return {
        "prosparse-export": version("prosparse-export"),
        "operator library": library.version,
        "ISA": library.isa_used or "none",
        "onnxruntime": onnxruntime.__version__,
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
