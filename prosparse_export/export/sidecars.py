"""The files next to an exported graph: config.json, tokenizer, genai_config.json, manifest, operator library."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from graph_passes import parts_of
from prosparse_export.artifact.genai_config import GENAI_CONFIG, genai_config
from prosparse_export.artifact.writer import MANIFEST, Sidecars, sha256_file
from prosparse_export.export.options import ExportOptions
from prosparse_export.export.rewritten_model import RewrittenModel
from prosparse_export.export.trace import OPSET
from prosparse_export.quiet import quiet
from prosparse_export.runtime.encoder_decoder import encoder_path
from prosparse_export.runtime.operator_library import library_path
from prosparse_models import CheckpointError
from prosparse_models.loading.tokenizer import load_tokenizer

__all__ = ["export_manifest", "export_sidecars"]

_PACKAGES = ("prosparse-export", "torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def export_manifest(folder: Path, output: Path, model: RewrittenModel, options: ExportOptions) -> dict[str, Any]:
    """Return the contents of prosparse.json for ``model``, exported from ``folder`` to ``output``."""
    checkpoint, graph = model.checkpoint, model.graphs[0]
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
        "attention_refused": model.attention,
        "weight_format": model.weights,
        "decomposed": options.decomposed,
        "ffn": {
            "rewritten": len(model.rewritten),
            "refused": len(model.not_rewritten),
            "layers": [vars(outcome) for outcome in model.outcomes],
        },
        "linear": {
            "weight_format": model.other_weights,
            "modules": [part for linear in model.linears for part in parts_of(linear.module)],
        },
    }
    if len(model.graphs) > 1:
        manifest["encoder"] = encoder_path(output).name
    if checkpoint.calibration is not None:
        kept = ("search_parameter", "budget", "perplexity_limit", "tokens", "hidden_act_param", "chosen")
        record = checkpoint.calibration
        manifest["calibration"] = {**{key: record[key] for key in kept}, "points": record["trials"]}
    if model.approximation is not None:
        manifest["approximation"] = model.approximation
    return manifest


def export_sidecars(
    folder: Path, name: str, model: RewrittenModel, manifest: dict[str, Any], options: ExportOptions
) -> Sidecars:
    """Return the files to write next to the graph ``name``."""
    config = model.checkpoint.config
    generation_config = getattr(model.checkpoint.model, "generation_config", None)  # encoders have none
    generation = generation_config.to_diff_dict() if generation_config is not None else {}
    documents = {"config.json": config, "generation_config.json": generation, MANIFEST: manifest}
    library = library_path() if options.copies_library else None
    genai = genai_config(
        model.graphs[0].graph,
        name,
        config,
        generation,
        library=None if library is None else library.name,
        in_place=manifest["attention"] == "GroupQueryAttention",
    )
    if genai is not None:
        documents[GENAI_CONFIG] = genai
    files = {} if library is None else {library.name: library}
    return Sidecars(documents, files, lambda target: _write_tokenizer(folder, target))


def _write_tokenizer(folder: Path, target: Path) -> None:
    """Write the tokenizer in the fast format; copy its files if transformers cannot load it."""
    kinds = (".json", ".model", ".txt")  # data only
    names = [p.name for p in folder.iterdir() if p.suffix in kinds and ("token" in p.name or p.suffix == ".model")]
    if not names:
        return
    try:
        with quiet():
            load_tokenizer(folder).save_pretrained(target)
    except CheckpointError:  # it needs custom code, or a package that is not installed
        for name in names:
            shutil.copyfile(folder / name, target / name)
