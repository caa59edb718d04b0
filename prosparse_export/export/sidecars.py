"""The files next to an exported graph: config.json, tokenizer, genai_config.json, manifest, operator library."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from graph_passes import parts_of
from graph_passes.custom_ops import ATTENTION, operators_of
from prosparse_export.artifact.genai_config import GENAI_CONFIG, genai_config
from prosparse_export.artifact.json_records import from_json
from prosparse_export.artifact.libraries import library_in_artifact
from prosparse_export.artifact.manifest import (
    GROUP_QUERY_ATTENTION,
    MULTI_HEAD_ATTENTION,
    FfnRecord,
    LinearRecord,
    Manifest,
    ModelFolderSource,
    OverrideRecord,
)
from prosparse_export.artifact.measured_records import ThresholdSearch
from prosparse_export.artifact.platforms import this_platform
from prosparse_export.artifact.writer import Sidecars
from prosparse_export.export.file_hashes import FileHashes
from prosparse_export.export.options import ExportOptions
from prosparse_export.export.rewritten_model import RewrittenModel
from prosparse_export.quiet import quiet
from prosparse_export.runtime.encoder_decoder import encoder_path
from prosparse_export.runtime.installed_libraries import choose_libraries, library_records
from prosparse_models import Checkpoint, CheckpointError
from prosparse_models.loading.tokenizer import load_tokenizer

__all__ = ["export_manifest", "export_sidecars", "source_files"]

_PACKAGES = ("prosparse-export", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def source_files(folder: Path, checkpoint: Checkpoint) -> list[Path]:
    """Return the files whose hashes the manifest records."""
    return [folder / "config.json", *checkpoint.files]


def export_manifest(
    folder: Path, output: Path, model: RewrittenModel, options: ExportOptions, hashes: FileHashes
) -> Manifest:
    """Return the manifest of ``model``, exported from ``folder`` to ``output``; hashes of its files come later."""
    checkpoint, graph = model.checkpoint, model.graphs[0]
    found = {node.op_type for model_graph in model.graphs for node in model_graph.graph}
    fused = (GROUP_QUERY_ATTENTION, *ATTENTION, MULTI_HEAD_ATTENTION)
    attention = next((name for name in fused if name in found), "unfused")
    return Manifest(
        source=ModelFolderSource(
            model_type=checkpoint.config.get("model_type"),
            weight_dtype=checkpoint.weight_dtype,
            sha256={path.name: hashes.of(path) for path in source_files(folder, checkpoint)},
        ),
        versions={name: version(name) for name in _PACKAGES},
        opset_imports=dict(sorted(graph.opset_imports.items())),
        operators=operators_of(*model.graphs),
        weight_format=model.plan.ffn,
        ffns=tuple(FfnRecord(**vars(outcome)) for outcome in model.outcomes),
        decomposed=options.decomposed,
        onnxruntime=">=1.27"
        if model.kv_cache is not None and model.kv_cache.format == "i8"
        else ">=1.18"
        if attention == "unfused"
        else ">=1.20",
        attention=attention,
        attention_not_fused=tuple(model.attention),
        libraries=library_records(choose_libraries(options.libraries)) if options.copies_library else {},
        linears=_linear_record(model),
        rounding=model.rounding,
        overrides={name: from_json(OverrideRecord, dict(change)) for name, change in checkpoint.overrides.items()},
        accuracy_level=options.accuracy_level,
        kv_cache=model.kv_cache,
        encoder=encoder_path(output).name if len(model.graphs) > 1 else None,
        calibration=_threshold_search(checkpoint.calibration),
        approximation=model.approximation,
    )


def _linear_record(model: RewrittenModel) -> LinearRecord:
    formats: dict[str, str] = {part: linear.weights for linear in model.linears for part in parts_of(linear.module)}
    exceptions = {part: weights for part, weights in formats.items() if weights != model.plan.other}
    return LinearRecord(model.plan.other, tuple(formats), exceptions)


def _threshold_search(record: Mapping[str, Any] | None) -> ThresholdSearch | None:
    """Return what prosparse_calibration.json records, without its format number."""
    if record is None:
        return None
    return from_json(ThresholdSearch, {key: value for key, value in record.items() if key != "format"})


def export_sidecars(
    folder: Path, name: str, model: RewrittenModel, manifest: Manifest, options: ExportOptions
) -> Sidecars:
    """Return the files to write next to the graph ``name``."""
    config = model.checkpoint.config
    generation_config = getattr(model.checkpoint.model, "generation_config", None)  # encoders have none
    generation = generation_config.to_diff_dict() if generation_config is not None else {}
    documents = {"config.json": config, "generation_config.json": generation}
    libraries = choose_libraries(options.libraries) if options.copies_library else {}
    own = this_platform()
    genai = genai_config(
        model.graphs[0].graph,
        name,
        config,
        generation,
        library=library_in_artifact(own) if own in libraries else None,
        in_place=manifest.fused_attention,
    )
    if genai is not None:
        documents[GENAI_CONFIG] = genai
    return Sidecars(documents, libraries, lambda target: _write_tokenizer(folder, target))


def _write_tokenizer(folder: Path, target: Path) -> None:
    """Write the tokenizer in the fast format; copy its files if transformers cannot load it."""
    kinds = (".json", ".model", ".txt")  # data only
    names = [p.name for p in folder.iterdir() if p.suffix in kinds and ("token" in p.name or p.suffix == ".model")]
    names += [name for name in ("chat_template.jinja",) if names and (folder / name).is_file()]
    if not names:
        return
    try:
        with quiet():
            load_tokenizer(folder).save_pretrained(target)
    except (CheckpointError, OSError, ValueError, ImportError):  # it needs custom code or a missing package
        for name in names:
            shutil.copyfile(folder / name, target / name)
