"""`validate`: the reference, the dense twin and the sparse artifact on the same tokens, and the verdict."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from prosparse_export.activity import measure_activity
from prosparse_export.approximate import approximate_again
from prosparse_export.artifact import read_manifest, sha256_file
from prosparse_export.errors import ProSparseError
from prosparse_export.library import library_info
from prosparse_export.model_folder import load_model_folder
from prosparse_export.probe import FfnNode, ffn_nodes, read_graph, unknown_to_the_library
from prosparse_export.runtime import SparseModel
from prosparse_export.stored_weights import (
    StoredAs,
    as_stored,
    checkpoint_format,
    flips_of,
    format_bound,
    stored_formats,
    with_stored_weights,
)
from prosparse_export.validation import reference as ref
from prosparse_export.validation.determinism import check_determinism
from prosparse_export.validation.exactness import Comparison, Expected, run_all
from prosparse_export.validation.explain import Finding, explain, open_probe, run_probe
from prosparse_export.validation.metrics import QualitySum
from prosparse_export.validation.operators import OperatorCheck, check_weights, exact_ffn, load_weights
from prosparse_export.validation.options import ValidationOptions
from prosparse_export.validation.result import Check, Sparsity, Validation, check_limits
from prosparse_export.validation.text import BUNDLED, Document, Window, default_text, load_tokenizer, tokenise, windows
from prosparse_models import Checkpoint

__all__ = ["validate"]

Tell = Callable[[str, int, int], None]


def validate(
    folder: Path,
    path: Path,
    options: ValidationOptions | None = None,
    *,
    text: str | None = None,
    texts: Sequence[tuple[str, str]] | None = None,
    trust_remote_code: bool = False,
    report: Tell | None = None,
) -> Validation:
    """Compare ``path`` with the model in ``folder``, in every way of running it.

    Args:
        folder: the model folder that ``path`` was exported from.
        path: the artifact.
        options: what to compare.
        text: what to compare on; None for the bundled text.
        texts: several, as (name, text); instead of ``text``.
        trust_remote_code: let Python code in ``folder`` run, for model types unknown here.
        report: called with a stage's name, how much of it is done, and of how much (0: unknown).

    Raises:
        ProSparseError: a model cannot be read, the artifact is another model's, or the text is too short.
    """
    options = options or ValidationOptions()
    clock = _Clock(report or (lambda *_: None))
    subject = _subject(Path(folder), Path(path), options, trust_remote_code)
    given = texts or [(BUNDLED, default_text()) if text is None else ("text", text)]
    documents = tokenise(load_tokenizer(subject.folder), given, options.tokens)
    with torch.no_grad():
        return _Run(subject, options, documents, clock).result()


@dataclass(frozen=True)
class _Subject:
    """What is validated, and what its manifest says of it."""

    folder: Path
    path: Path
    graph: onnx.ModelProto
    nodes: list[FfnNode]
    linears: dict[str, list[str]]
    formats: dict[str, StoredAs]
    flips: float
    weights: str
    lossy: bool
    fused_attention: bool
    sources: dict[str, str]
    positions: int | None
    trust: bool
    approximation: dict[str, Any] | None

    def load(self, *, low_memory: bool) -> Checkpoint:
        """Load PyTorch's model, with its matrices left in their files if memory is low."""
        changes = read_manifest(self.path).get("overrides", {})  # --activation, --threshold
        used = {name: change["used"] for name, change in changes.items()}
        return load_model_folder(self.folder, trust_remote_code=self.trust, in_files=low_memory, **used)


def _subject(folder: Path, path: Path, options: ValidationOptions, trust: bool) -> _Subject:
    if not folder.is_dir():
        raise ProSparseError(f"model folder: {folder}: expected a folder, got none", hint="check the path")
    graph = read_graph(path)
    manifest = read_manifest(path)
    if "encoder" in manifest:
        raise ProSparseError(
            f"artifact: {path}: expected a decoder alone, got an encoder-decoder, whose logits on a running text mean "
            "nothing",
            hint="its export compared it with PyTorch; `prosparse generate` runs it",
        )
    sources: dict[str, str] = manifest.get("source", {}).get("sha256", {})
    for name, expected in sources.items():
        file = folder / name
        got = sha256_file(file) if file.is_file() else "no such file"
        if got != expected:
            raise ProSparseError(
                f"artifact: {path}: was exported from another model: {file}: expected SHA-256 {expected[:12]}, "
                f"got {got[:12]}",
                hint="give the model folder that it was exported from, or export this one",
            )
    weights = manifest.get("weight_format", "f32")
    layers = [layer for layer in manifest.get("ffn", {}).get("layers", []) if not layer["reason"]]
    own = checkpoint_format(manifest.get("source", {}).get("weight_dtype", "float32"))
    config = _config(folder)
    formats = stored_formats(manifest)
    return _Subject(
        folder=folder,
        path=path,
        graph=graph,
        nodes=_as_exported(ffn_nodes(graph), layers),
        linears={layer["module"]: list(layer["linears"]) for layer in layers if layer.get("linears")},
        formats=formats,
        flips=flips_of(manifest),
        weights=weights,
        lossy=any(stored.weights != own for stored in formats.values()) or "approximation" in manifest,
        fused_attention=manifest.get("attention") == "GroupQueryAttention",
        sources=sources,
        positions=config.get("max_position_embeddings"),
        trust=trust,
        approximation=manifest.get("approximation"),
    )


def _as_exported(nodes: list[FfnNode], layers: Sequence[Mapping[str, Any]]) -> list[FfnNode]:
    """Return the operators with the activation that the export found: what the graph says of it now may be wrong."""
    found = {layer["module"]: layer for layer in layers}
    return [
        replace(node, activation=layer["activation"], threshold=layer["threshold"])
        if (layer := found.get(node.module)) is not None
        else node
        for node in nodes
    ]


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        values: Mapping[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # loading the folder says what is wrong with it
    return values


class _Clock:
    """Passes progress on and adds up the time of each stage."""

    def __init__(self, report: Tell) -> None:
        self._report, self._stage, self._began = report, "", time.perf_counter()
        self.seconds: dict[str, float] = {}

    def __call__(self, stage: str, done: int = 0, total: int = 0) -> None:
        if stage != self._stage:
            now = time.perf_counter()
            if self._stage:
                self.seconds[self._stage] = round(self.seconds.get(self._stage, 0.0) + now - self._began, 3)
            self._stage, self._began = stage, now
        self._report(stage, done, total)


class _Run:
    """One validation, stage by stage: never more than one model in memory, logits on disk."""

    def __init__(self, subject: _Subject, options: ValidationOptions, documents: list[Document], tell: _Clock) -> None:
        self.subject, self.options, self.documents, self.tell = subject, options, documents, tell
        context = min(options.context, subject.positions or options.context, max(len(d.ids) for d in documents))
        stride = options.stride or max(context // 2, 1)
        if stride > context:
            raise ProSparseError(
                f"stride: expected at most the context, {context}, got {stride}", hint="a token between would not count"
            )
        self.context = context
        self.windows: list[Window] = list(windows(documents, context, stride))
        self.prompts = ref.cut_prompts(documents, max(options.prompts, 1), context)
        self.metadata = ref.fingerprint(self.windows, documents, subject.sources)
        self.operators: tuple[OperatorCheck, ...] = ()

    def result(self) -> Validation:
        """Run all stages."""
        s, options, tell = self.subject, self.options, self.tell
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
                runs, _ = run_all(dense, "without library", expected, sum_without, original, tell)
                del dense
            expected = Expected(exact, self.windows, bound, options)
            sparse = SparseModel.open(s.path, library=True, threads=options.threads)
            found, matches = run_all(sparse, "with library", expected, sum_with, original, tell)
            del sparse
            runs = found + runs
        finally:
            original.file.close()
            if exact is not None:
                exact.file.close()
        tell("same bits again")
        repeated = check_determinism(str(s.path), self.windows, threads=options.threads, whole=options.repeat)
        sparsity = None
        if s.nodes:
            texts = [d.ids for d in self.documents]
            count: Callable[[int, int], None] = lambda done, total: tell("sparsity", done, total)  # noqa: E731
            activity = measure_activity(s.path, texts, context=self.context, threads=options.threads, progress=count)
            by_layer = tuple(layer.sparsity for layer in activity.layers)
            sparsity = Sparsity(activity.sparsity, by_layer, len(activity.texts))
        unknown = tuple(unknown_to_the_library(s.graph))
        quality = (sum_without.result(), sum_with.result())
        checks = [Check(c.name, _measured(c), f"at most {bound:.3g} on logits, same tokens", c.passed) for c in runs]
        checks += self._operator_checks(unknown)
        again = repeated.first or f"{repeated.tokens} tokens"
        checks.append(Check("same bits in every run", again, "no differing bit", repeated.passed))
        checks += check_limits(options.limits, quality[1], sparsity, tuple(matches), self._greedy(original))
        findings: tuple[Finding, ...] = ()
        explained = options.explain and not all(c.passed for c in checks)
        if explained:
            findings = self._explain()
        tell("done")
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
            findings=findings,
            explained=explained,
            tokens=quality[1].tokens,
            texts={d.name: d.sha256 for d in self.documents},
            artifact=_describe(s.path, s.weights),
            versions=_versions(),
            seconds=tell.seconds,
        )

    def _greedy(self, original: ref.Reference) -> int:
        return min(self.options.greedy, len(original.continuations[0].greedy))

    def _bound(self, exact: ref.Reference) -> float:
        if self.options.max_abs_diff is not None:
            return self.options.max_abs_diff
        return format_bound(self.subject.formats, exact.largest, self.subject.flips)

    def _references(self) -> tuple[ref.Reference, ref.Reference | None]:
        """PyTorch with its own weights and with the stored ones; the second is None if only the artifact has them."""
        s, options, tell = self.subject, self.options, self.tell
        if options.reference is not None:
            original = ref.open_reference(options.reference, self.metadata, len(self.prompts))
            return original, None if s.lossy else original
        tell("load PyTorch's model")
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
            progress=lambda done, total: self.tell(stage, done, total),
        )

    def _dense_twin(self, original: ref.Reference, quality: QualitySum) -> ref.Reference:
        dense = SparseModel.open(self.subject.path, library=False, threads=self.options.threads)
        twin = self._reference(ref.artifact_forward(dense), "without library", None)
        for (window, actual), (_, expected) in zip(twin.rows(self.windows), original.rows(self.windows), strict=True):
            quality.add(actual, expected, window.targets)
        return twin

    def _check_operators(self, checkpoint: Checkpoint) -> None:
        """Hold each sparse operator, with the library, against float64 on its own inputs."""
        s, count = self.subject, self.options.operator_tokens
        if not count or not s.nodes or any(node.module not in s.linears for node in s.nodes):
            return
        self.tell("operators")
        ids = self.windows[0].ids[:count]
        session = open_probe(s.path, s.nodes, library=True, threads=self.options.threads)
        trace = run_probe(session, s.nodes, ids, 1, first=max(len(ids) // 2, 1))  # many tokens at once, then one by one
        del session
        results = []
        for i, node in enumerate(s.nodes):
            self.tell("operators", i, len(s.nodes))
            stored, exact = load_weights(checkpoint.model, s.linears[node.module], node, checkpoint.weights)
            wrong = check_weights(s.graph, s.path.parent, stored)
            x: NDArray[np.float64] = trace.inputs[i].astype(np.float64)
            rounds = node.weights in ("i8", "i4")
            expected, bound = exact_ffn(x, exact, node.activation, node.threshold, rounds=rounds)
            difference = np.abs(trace.outputs[i] - expected)
            worst = float((difference / np.maximum(bound, np.finfo(np.float64).tiny)).max())
            results.append(
                OperatorCheck(i, node.module, node.node.op_type, len(x), float(difference.max()), worst, wrong)
            )
        self.operators = tuple(results)

    def _operator_checks(self, unknown: tuple[str, ...]) -> list[Check]:
        checks = [
            Check("operators in the library", ", ".join(unknown) + " missing" if unknown else "all", "all", not unknown)
        ]
        for o in self.operators:
            if not o.passed:
                got = f"{o.worst:.3g} times its bound" if not o.worst <= 1 else "results right"
                got += f"; not the checkpoint's weights: {', '.join(o.wrong_weights)}" if o.wrong_weights else ""
                checks.append(Check(f"layer {o.layer}: {o.op} ({o.module})", got, "float64 within its bound", False))
        if self.operators and all(o.passed for o in self.operators):
            worst = max(o.worst for o in self.operators)
            got = f"{len(self.operators)} of {len(self.operators)}, worst {worst:.2g} times its bound"
            checks.append(Check("sparse operators against float64", got, "within their bounds", True))
        return checks

    def _explain(self) -> tuple[Finding, ...]:
        s = self.subject
        self.tell("explain")
        model = s.load(low_memory=False).model
        others = s.formats.keys() - {name for names in s.linears.values() for name in names}
        with_stored_weights(model, {name: s.formats[name] for name in others})  # explain() rounds the blocks' own
        ids = self.windows[0].ids
        found = explain(
            model,
            s.path,
            s.nodes,
            s.linears,
            ids,
            roundings=sum(s.formats[name].weights in ("i8", "i4") for name in others),
            fused_attention=s.fused_attention,
            threads=self.options.threads,
            tell=self.tell,
        )
        wrong = [
            Finding(name, o.layer, o.op, o.module, -1, math.nan, 0.0)
            for o in self.operators
            for name in o.wrong_weights
        ]
        return (*wrong, *found)


def _measured(c: Comparison) -> str:
    return f"{c.max_abs_diff:.3g}, {c.top1_differs} top-1 and {c.greedy_differs} greedy tokens differ"


def _describe(path: Path, weights: str) -> dict[str, Any]:
    data = path.with_name(path.name + ".data")
    size = path.stat().st_size + (data.stat().st_size if data.is_file() else 0)
    return {"name": path.name, "sha256": sha256_file(path), "bytes": size, "weights": weights}


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
