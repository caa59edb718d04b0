"""``prosparse info``."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.describe import describe_approximation, describe_calibration, describe_kv_cache
from prosparse_export.cli.display import stages

if TYPE_CHECKING:
    from prosparse_export.artifact.manifest import Manifest
    from prosparse_export.artifact.measured_records import ValidatedFiles, ValidationRecord

__all__ = ["info_command"]

_COSTS = 3  # parts to list

_PACKAGES = (
    "prosparse-export",
    "onnxruntime",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "torch",
    "transformers",
    "optimum",
    "numpy",
)
_EXAMPLES = """
Examples:
  prosparse info
  PROSPARSE_ISA=avx2 prosparse info --json
  prosparse info out/demo/demo.onnx                # manifest and validation result
  prosparse info out/demo/demo.onnx --verify       # after a copy: compare SHA-256
"""


@click.command(
    "info",
    cls=ProSparseCommand,
    context_settings=CONTEXT,
    epilog=_EXAMPLES,
    short_help="Show versions, instruction sets, and an artifact's manifest.",
)
@click.argument("onnx_file", required=False, type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Compare the SHA-256 of graph and weights with the manifest.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def info_command(onnx_file: Path | None, verify: bool, as_json: bool) -> None:
    """Show versions, the operator library, and the instruction set of its kernels.

    With ONNX_FILE: show its manifest and the last result of `prosparse validate`.
    """
    if verify and onnx_file is None:
        raise click.UsageError("--verify requires ONNX_FILE")
    if onnx_file is not None:
        from prosparse_export.artifact.integrity import check_model_path

        check_model_path(onnx_file)
        if verify:
            _verify(onnx_file)
        _show_artifact(onnx_file, as_json=as_json, verify=verify)
        return
    from prosparse_export.runtime.installed_libraries import installed_libraries
    from prosparse_export.runtime.operator_library import ISA_HINT, library_info

    library = library_info()
    values: dict[str, object] = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "library": {**asdict(library), "path": str(library.path)},
        "platforms": sorted(installed_libraries()),
    }
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    click.echo(f"python {values['python']}, {values['machine']}")
    for name in _PACKAGES:
        click.echo(f"{name} {_version(name)}")
    click.echo(f"operator library {library.version}: {library.path}")
    click.echo(f"libraries for: {', '.join(sorted(installed_libraries()))}")
    click.echo(f"ISA in the library: {', '.join(library.isa_compiled)}")
    click.echo(f"ISA of this machine: {', '.join(library.isa_supported)}")
    click.echo(f"ISA used: {library.isa_used or f'none: {library.error}'}")
    if library.isa_used is None:
        click.echo(f"hint: {ISA_HINT}", err=True)


def _show_artifact(path: Path, *, as_json: bool, verify: bool) -> None:
    from prosparse_export.artifact.manifest import require_manifest

    manifest = require_manifest(path)
    current = manifest.validation is not None and _is_current(path, manifest.validation.artifact, verify=verify)
    if as_json:
        values = manifest.to_dict()
        if manifest.validation is not None:
            values["validation"]["current"] = current
        click.echo(json.dumps(values, indent=2))
        return
    exported = manifest.source.kind != "onnx_file"
    validation = _validation_lines(path, manifest.validation, current=current, exported=exported)
    for line in (*_manifest_lines(path, manifest), *validation):
        click.echo(line)


def _manifest_lines(path: Path, manifest: Manifest) -> Iterator[str]:
    source = manifest.source
    name = f"optimized from {source.file}" if source.kind == "onnx_file" else source.model_type
    yield f"{path}: {name}, {manifest.weight_format or 'unchanged'} weights"
    if manifest.attention is not None:
        yield f"attention: {manifest.attention}; onnxruntime {manifest.onnxruntime}"
    if manifest.accuracy_level:
        yield f"accuracy level: {manifest.accuracy_level} (kernels may hold activations with 8 bits)"
    if manifest.kv_cache is not None:
        yield describe_kv_cache(manifest.kv_cache)
    yield f"sparse FFNs: {len(manifest.rewritten)}, not rewritten: {len(manifest.not_rewritten)}"
    yield from _rounding_lines(manifest)
    if manifest.already_sparse:
        yield f"already sparse in the source: {', '.join(f'{n} in {w}' for w, n in manifest.already_sparse.items())}"
    if manifest.approximation is not None:
        yield f"LOSSY: {describe_approximation(manifest.approximation)}"
    if manifest.calibration is not None:
        yield f"calibrated: {describe_calibration(manifest.calibration)}"
    yield from _library_lines(path.parent, manifest)
    yield "exported with: " + ", ".join(f"{name} {v}" for name, v in manifest.versions.items())


def _library_lines(folder: Path, manifest: Manifest) -> Iterator[str]:
    from prosparse_export.artifact.libraries import library_problems
    from prosparse_export.artifact.platforms import this_platform

    problems = dict(library_problems(folder, manifest.libraries))
    for name, record in manifest.libraries.items():
        state = f", {problems[name].upper()}" if name in problems else ""
        yield f"library {record.version} for {name}: {record.file} ({record.bytes:,} bytes{state})"
    if manifest.libraries and this_platform() not in manifest.libraries:
        yield f"no library for this platform, {this_platform()}"


def _rounding_lines(manifest: Manifest) -> Iterator[str]:
    """Yield the matrices that are not stored in the common format, and what their rounding was measured on."""
    if manifest.linears is not None and manifest.linears.exceptions:
        names: dict[str, list[str]] = {}
        for module, weights in manifest.linears.exceptions.items():
            kind = module.rpartition(".")[2]
            names.setdefault(weights, []).append(kind)
        for weights, kinds in names.items():
            counts = ", ".join(f"{kind} ({kinds.count(kind)})" for kind in dict.fromkeys(kinds))
            yield f"in {weights}: {counts}; other linear layers in {manifest.linears.weight_format}"
    yield from _ffn_formats(manifest)
    if manifest.rounding is not None and manifest.rounding.compensated:
        yield f"compensated rounding: {len(manifest.rounding.compensated)} matrices"
    if manifest.rounding is not None and manifest.rounding.costs:
        costs = sorted(manifest.rounding.costs, key=lambda cost: -cost.kl)[:_COSTS]
        yield "most expensive in 4 bits: " + "; ".join(f"{c.part} {c.kl:.2g} nats, in {c.format}" for c in costs)
    if manifest.rounding is not None and manifest.rounding.tokens:
        texts = ", ".join(manifest.rounding.texts)
        yield f"rounding errors weighted by inputs: {manifest.rounding.tokens} tokens of {texts}"


def _ffn_formats(manifest: Manifest) -> Iterator[str]:
    """Yield the formats of the sparse FFNs, if they have several."""
    from graph_passes.custom_ops import format_in

    found = [format_in(ffn.op) for ffn in manifest.rewritten]
    if len(set(found)) > 1:
        yield "sparse FFNs: " + ", ".join(f"{found.count(name)} in {name}" for name in dict.fromkeys(found))


def _is_current(path: Path, validated: ValidatedFiles, *, verify: bool) -> bool:
    """Return whether the files are those that were validated: graph hash, size of the weights and, if asked, hash."""
    from prosparse_export.artifact.integrity import sha256_file

    data = path.with_name(f"{path.name}.data")
    size = data.stat().st_size if data.is_file() else None
    if validated.sha256 != sha256_file(path) or validated.data_bytes != size:
        return False
    return not verify or size is None or validated.data_sha256 == sha256_file(data)


def _verify(path: Path) -> None:
    from prosparse_export.artifact.integrity import check_files
    from prosparse_export.artifact.libraries import check_libraries

    with stages(quiet=False) as progress:
        checked = check_files(path, verify=True, progress=progress) + check_libraries(path)
    click.echo(f"verified: {checked} files match prosparse.json", err=True)


def _validation_lines(
    path: Path, validation: ValidationRecord | None, *, current: bool, exported: bool
) -> Iterator[str]:
    if validation is None:
        if exported:  # validation needs the model folder
            yield f"not validated: prosparse validate MODEL_DIR {path}"
        return
    verdict = "passed:" if validation.passed else f"FAILED: {len(validation.failed)} of"
    stale = "" if current else " (the files have changed since: validate again)"
    yield f"validation {verdict} {validation.checks} checks{stale}"
    for check in validation.failed:
        yield f"  failed: {check.name}: measured {check.measured}; allowed {check.allowed}"
    texts = ", ".join(f"{name} ({digest[:12]})" for name, digest in validation.texts.items())
    yield f"  text: {validation.tokens} tokens of {texts}"
    for q in validation.quality:
        yield (
            f"  {q.name}: perplexity {q.perplexity:.5g} (PyTorch {q.reference_perplexity:.5g}), "
            f"KL {q.kl_mean:.5g}, top-1 {q.top1:.2%}"
        )
    if validation.sparsity is not None:
        yield f"  activation sparsity: {validation.sparsity.mean:.2%}"
    yield "  with: " + ", ".join(f"{name} {v}" for name, v in validation.versions.items())


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
