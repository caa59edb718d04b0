"""The main job: model folder in, ONNX artifact out."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from graph_passes import (
    FfnFormat,
    FfnOutcome,
    Format,
    LinearOutcome,
    export_pipeline,
    format_of,
    parts_of,
)
from prosparse_export.artifact.genai_config import GENAI_CONFIG, genai_config
from prosparse_export.artifact.model_settings import context_in
from prosparse_export.artifact.writer import (
    MANIFEST,
    Sidecars,
    artifact_folder,
    sha256_file,
    write_artifact,
    write_manifest,
)
from prosparse_export.errors import ProSparseError
from prosparse_export.export.approximate import Approximation, approximate, check_approximation
from prosparse_export.export.encoder_decoder import check_encoder_decoder, rewrite_encoder_decoder, write_encoder
from prosparse_export.export.lazy_initializers import place_weights
from prosparse_export.export.load import load_model_folder
from prosparse_export.export.malloc_trim import give_back
from prosparse_export.export.predicted_speedup import expected_gain, layers_that_do_not_pay, measure_layers
from prosparse_export.export.rounded_reference import (
    as_stored,
    checkpoint_format,
    flips_of,
    format_bound,
    stored_formats,
)
from prosparse_export.export.trace import OPSET, trace
from prosparse_export.progress import ProgressCallback, no_progress
from prosparse_export.quiet import quiet
from prosparse_export.runtime.encoder_decoder import encoder_path
from prosparse_export.runtime.model import SparseModel
from prosparse_export.runtime.operator_library import check_library, library_path
from prosparse_export.text.files import read_text
from prosparse_models import Checkpoint, CheckpointError
from prosparse_models.loading.model_config import read_model_config
from prosparse_models.loading.tokenizer import load_tokenizer

__all__ = ["ExportOptions", "ExportResult", "export_model"]

_PACKAGES = ("prosparse-export", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")
_CHECK_TOKENS = 16
_CHECK_BOUND = 1e-3  # logits, absolute; `prosparse validate` measures on real text


@dataclass(frozen=True)
class ExportOptions:
    """How to export.

    Attributes:
        overwrite: replace files that are in the way.
        allow_dense: write the artifact even if no feed-forward block became sparse.
        fuse_attention: use onnxruntime's fused attention, rotary and norm operators (onnxruntime >= 1.20).
        with_library: put the operator library beside the graph.
        trust_remote_code: let Python code in the model folder run, for model types unknown here.
        weights: how the sparse blocks' matrices are stored; None for the checkpoint's own float type.
        other_weights: how attention's, lm_head's and the embedding's are; None for as ``weights``, and i4 for i4i8.
        activation: what the FFNs compute (relu, relu2, fatrelu, drelu), where config.json is wrong.
        threshold: FATReLU t, where config.json lacks it or another is wanted.
        decomposed: write standard ONNX instead of our operators, with standard attention.
        profile_texts: text on which each FFN's sparsity is measured, to leave FFNs dense that would gain nothing and
            to say what to expect.
        approximate: zero the smallest activations of a SwiGLU model. LOSSY: the manifest has what it costs.
    """

    overwrite: bool = False
    allow_dense: bool = False
    fuse_attention: bool = True
    with_library: bool = True
    trust_remote_code: bool = False
    weights: FfnFormat | None = None
    other_weights: Format | None = None
    activation: str | None = None
    threshold: float | None = None
    decomposed: bool = False
    approximate: Approximation | None = None
    profile_texts: tuple[Path, ...] = ()


@dataclass(frozen=True)
class ExportResult:
    """What was written.

    Attributes:
        path: the graph.
        rewritten: feed-forward blocks that became sparse operators.
        refused: those that did not, with their reasons.
        attention_refusals: one line per attention that was not fused.
        manifest: contents of prosparse.json.
    """

    path: Path
    rewritten: tuple[FfnOutcome, ...]
    refused: tuple[FfnOutcome, ...]
    attention_refusals: tuple[str, ...]
    manifest: dict[str, Any]


def export_model(
    folder: Path, output: Path, options: ExportOptions | None = None, progress: ProgressCallback = no_progress
) -> ExportResult:
    """Export the model in ``folder`` to ``output``, an .onnx file; see docs/architecture.md.

    Beside it come ``OUT.onnx.data``, config.json, generation_config.json, the tokenizer's files,
    prosparse.json and the operator library. All appear at the end, the graph last, or none.

    Raises:
        ProSparseError: the folder cannot be read, the output cannot be written, no block could be
            rewritten, or the written graph does not compute what the model does.
    """
    options = options or ExportOptions()
    folder, output = Path(folder), Path(output)
    if output.parent.resolve() == folder.resolve():
        raise ProSparseError(
            f"output: {output}: expected a folder of its own, got the model folder, whose config.json it would replace",
            hint="choose another folder",
        )
    if options.with_library and not options.decomposed:
        check_library()
    if options.approximate is not None:
        check_approximation(options.approximate)
    texts = [(path.name, read_text(path)) for path in options.profile_texts]  # before minutes of loading and tracing
    with artifact_folder(output, overwrite=options.overwrite) as staging:
        progress("load", 0, 0)
        if _is_encoder_decoder(folder):
            return _export_encoder_decoder(folder, output, staging, options, progress)
        checkpoint, graph, approximation = _traced(folder, options, progress)
        measured = measure_layers(checkpoint, folder, texts, progress) if texts else None
        weights: FfnFormat = options.weights or checkpoint_format(checkpoint.weight_dtype)
        other_weights = options.other_weights or format_of(weights, is_down=False)
        progress("rewrite", 0, 0)
        outcomes: list[FfnOutcome] = []
        refusals: list[str] = []
        linears: list[LinearOutcome] = []
        has_head = checkpoint.model.get_output_embeddings() is not None
        fuse = options.fuse_attention and has_head and not options.decomposed  # the fused operator wants a cache
        export_pipeline(
            outcomes,
            refusals,
            fuse_attention=fuse,
            weights=weights,
            other_weights=other_weights,
            linears=linears,
            dense=layers_that_do_not_pay(measured, weights) if measured is not None else None,
            decomposed=options.decomposed,
            positions=context_in(checkpoint.config),
        )(graph)
        rewritten = tuple(o for o in outcomes if not o.reason)
        refused = tuple(o for o in outcomes if o.reason)
        if not rewritten and not options.allow_dense:
            raise _nothing_rewritten(folder, refused)
        if approximation is not None and len(rewritten) < len(approximation["thresholds"]):
            raise ProSparseError(
                f"approximation: {folder}: expected {len(approximation['thresholds'])} sparse blocks, got "
                f"{len(rewritten)}: {refused[0] if refused else 'others were not found'}",
                hint="such a model would lose accuracy and gain no speed: leave out --approximate",
            )
        progress("write", 0, 0)
        manifest = _manifest(folder, checkpoint, graph, outcomes, refusals, linears, weights, other_weights, options)
        if approximation is not None:
            manifest["approximation"] = approximation
        sidecars = _sidecars(folder, checkpoint, graph, output.name, manifest, options)
        write_artifact(graph, staging, output.name, sidecars, progress)
        progress("check", 0, 0)
        del graph
        uses_library = options.with_library and bool(rewritten) and not options.decomposed
        _check(checkpoint, staging / output.name, manifest, uses_library=uses_library)
        if measured is not None and uses_library:
            progress("time", 0, 0)
            manifest["expected"] = expected_gain(staging / output.name, measured, outcomes, weights)
            write_manifest(staging, manifest)
        progress("publish", 0, 0)
    return ExportResult(output, rewritten, refused, tuple(refusals), manifest)


def _export_encoder_decoder(
    folder: Path, output: Path, staging: Path, options: ExportOptions, progress: ProgressCallback
) -> ExportResult:
    if options.approximate is not None:
        raise ProSparseError(
            f"approximation: {folder}: expected a decoder alone, got an encoder-decoder", hint="leave out --approximate"
        )
    if options.other_weights not in (None, "f32"):
        raise ProSparseError(
            f"weights: {folder}: expected f32 outside the FFNs of an encoder-decoder, got {options.other_weights}",
            hint="--weights alone is for its FFNs",
        )
    checkpoint = load_model_folder(
        folder,
        trust_remote_code=options.trust_remote_code,
        activation=options.activation,
        threshold=options.threshold,
        encoder_decoder=True,
    )
    weights: FfnFormat = options.weights or checkpoint_format(checkpoint.weight_dtype)
    encoder, decoder, outcomes = rewrite_encoder_decoder(
        checkpoint.model, weights, decomposed=options.decomposed, progress=progress
    )
    rewritten = tuple(o for o in outcomes if not o.reason)
    refused = tuple(o for o in outcomes if o.reason)
    if not rewritten and not options.allow_dense:
        raise _nothing_rewritten(folder, refused)
    refusals = ["encoder-decoder: attention stays as it was traced"]
    manifest = _manifest(folder, checkpoint, decoder, outcomes, refusals, [], weights, "f32", options)
    manifest["encoder"] = encoder_path(output).name
    write_encoder(encoder, staging, output.name, progress)
    sidecars = _sidecars(folder, checkpoint, decoder, output.name, manifest, options)
    write_artifact(decoder, staging, output.name, sidecars, progress)
    progress("check", 0, 0)
    uses_library = options.with_library and bool(rewritten) and not options.decomposed
    formats = stored_formats(manifest)
    check_encoder_decoder(checkpoint.model, staging / output.name, formats, uses_library=uses_library)
    progress("publish", 0, 0)
    return ExportResult(output, rewritten, refused, tuple(refusals), manifest)


def _traced(
    folder: Path, options: ExportOptions, progress: ProgressCallback
) -> tuple[Checkpoint, ir.Model, dict[str, Any] | None]:
    """Load and trace the model with its matrices left in their files, or, where that cannot be, with all of it read.

    An approximation is measured on the model, so it wants all of it; the third result is what it found.
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
        if options.approximate is not None:
            approximation = approximate(checkpoint.model, folder, options.approximate, progress)
        progress("trace", 0, 0)
        graph = trace(checkpoint.model)
        if checkpoint.weights is None or not place_weights(graph.graph, checkpoint.weights):
            break
    return checkpoint, graph, approximation


def _is_encoder_decoder(folder: Path) -> bool:
    """Tell whether config.json is of an encoder-decoder with a language model's head."""
    try:
        values = read_model_config(folder).values
    except CheckpointError:
        return False  # loading says what is wrong
    architecture = str(next(iter(values.get("architectures") or []), ""))
    return bool(values.get("is_encoder_decoder")) and not architecture.endswith("Model")


def _nothing_rewritten(folder: Path, refused: tuple[FfnOutcome, ...]) -> ProSparseError:
    reason = str(refused[0]) if refused else "no feed-forward block was found"
    others = f" ({len(refused) - 1} more refused)" if len(refused) > 1 else ""
    return ProSparseError(
        f"model folder: {folder}: no feed-forward block can be sparse: {reason}{others}",
        hint="this needs a model trained with ReLU; pass --allow-dense to export it as it is",
    )


def _manifest(
    folder: Path,
    checkpoint: Checkpoint,
    graph: ir.Model,
    outcomes: list[FfnOutcome],
    refusals: list[str],
    linears: list[LinearOutcome],
    weights: FfnFormat,
    other_weights: Format,
    options: ExportOptions,
) -> dict[str, Any]:
    fused = any(node.op_type == "GroupQueryAttention" for node in graph.graph)
    manifest = {
        "format": 1,
        "versions": {name: version(name) for name in _PACKAGES},
        "source": {
            "model_type": checkpoint.config.get("model_type"),
            "sha256": {path.name: sha256_file(path) for path in (folder / "config.json", *checkpoint.files)},
            "weight_dtype": checkpoint.weight_dtype,
        },
        "overrides": checkpoint.overrides,
        "opset": OPSET,
        "opset_imports": dict(sorted(graph.opset_imports.items())),
        "onnxruntime": ">=1.20" if fused else ">=1.18",
        "attention": "GroupQueryAttention" if fused else "unfused",
        "attention_refused": refusals,
        "weight_format": weights,
        "decomposed": options.decomposed,
        "ffn": {
            "rewritten": sum(not o.reason for o in outcomes),
            "refused": sum(bool(o.reason) for o in outcomes),
            "layers": [vars(o) for o in outcomes],
        },
        "linear": {
            "weight_format": other_weights,
            "modules": [part for linear in linears for part in parts_of(linear.module)],
        },
    }
    if checkpoint.calibration is not None:
        manifest["calibration"] = _searched(checkpoint.calibration)
    return manifest


def _searched(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest's entry on the threshold search that `read_calibration` gave."""
    kept = ("search_parameter", "budget", "perplexity_limit", "tokens", "hidden_act_param", "chosen")
    return {**{key: record[key] for key in kept}, "points": record["trials"]}


def _sidecars(
    folder: Path,
    checkpoint: Checkpoint,
    graph: ir.Model,
    name: str,
    manifest: dict[str, Any],
    options: ExportOptions,
) -> Sidecars:
    generation_config = getattr(checkpoint.model, "generation_config", None)  # an encoder has none
    generation = generation_config.to_diff_dict() if generation_config is not None else {}
    documents = {"config.json": checkpoint.config, "generation_config.json": generation, MANIFEST: manifest}
    library = library_path() if options.with_library and not options.decomposed else None
    files = {} if library is None else {library.name: library}
    genai = genai_config(
        graph.graph,
        name,
        checkpoint.config,
        generation,
        library=None if library is None else library.name,
        in_place=manifest["attention"] == "GroupQueryAttention",
    )
    if genai is not None:
        documents[GENAI_CONFIG] = genai
    return Sidecars(documents, files, lambda target: _write_tokenizer(folder, target))


def _write_tokenizer(folder: Path, target: Path) -> None:
    """Write the folder's tokenizer in the fast format, or copy what is there if there is no tokenizer."""
    kinds = (".json", ".model", ".txt")  # data only
    names = [p.name for p in folder.iterdir() if p.suffix in kinds and ("token" in p.name or p.suffix == ".model")]
    if not names:
        return
    try:
        with quiet():
            load_tokenizer(folder).save_pretrained(target)
    except CheckpointError:  # a tokenizer that brings code, or a package that is not here
        for name in names:
            shutil.copyfile(folder / name, target / name)


@torch.no_grad()
def _check(checkpoint: Checkpoint, path: Path, manifest: Mapping[str, Any], *, uses_library: bool) -> None:
    """Compare a few logits with PyTorch's: an artifact that computes something else is never published."""
    model = checkpoint.model
    formats = stored_formats(manifest)
    vocabulary = int(model.config.get_text_config().vocab_size)
    tokens = min(_CHECK_TOKENS, context_in(checkpoint.config) or _CHECK_TOKENS)
    ids = np.random.default_rng(0).integers(0, vocabulary, size=(1, tokens))
    with quiet(), as_stored(checkpoint, formats):
        expected = next(iter(model(input_ids=torch.from_numpy(ids)).values())).float().numpy()
    give_back()
    actual, _ = SparseModel.open(path, library=uses_library).forward(ids, np.ones_like(ids))
    difference = float(np.abs(actual - expected).max())
    largest = max(1.0, float(np.abs(expected).max()))
    bound = max(_CHECK_BOUND * largest, format_bound(formats, largest, flips_of(manifest)))
    if not difference <= bound:
        raise ProSparseError(
            f"check: logits differ from PyTorch's: expected at most {bound:g}, got {difference:g}",
            hint="please report this model; --attention unfused may help",
        )
