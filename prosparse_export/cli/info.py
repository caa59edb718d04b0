"""``prosparse info``."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from prosparse_export.cli.command import CONTEXT, ProSparseCommand
from prosparse_export.cli.describe import describe_approximation, describe_calibration
from prosparse_export.cli.display import stages
from prosparse_export.errors import ProSparseError

__all__ = ["info_command"]

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
  prosparse info out/demo.onnx                # what it is, and what validate found
  prosparse info out/demo.onnx --verify       # after a copy: are all files there and whole?
"""


@click.command("info", cls=ProSparseCommand, context_settings=CONTEXT, epilog=_EXAMPLES)
@click.argument("onnx_file", required=False, type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read ONNX_FILE and its weights and compare their SHA-256 with it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info_command(onnx_file: Path | None, verify: bool, as_json: bool) -> None:
    """Show versions, the operator library, and the instruction set that its kernels use.

    With ONNX_FILE: what its manifest says, and what `prosparse validate` found.
    """
    if verify and onnx_file is None:
        raise click.UsageError("--verify needs ONNX_FILE")
    if onnx_file is not None:
        if verify:
            _verify(onnx_file)
        _artifact(onnx_file, as_json=as_json, verify=verify)
        return
    from prosparse_export.runtime.operator_library import library_info

    library = library_info()
    values: dict[str, object] = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "library": {**asdict(library), "path": str(library.path)},
    }
    if as_json:
        click.echo(json.dumps(values, indent=2))
        return
    click.echo(f"python {values['python']}, {values['machine']}")
    for name in _PACKAGES:
        click.echo(f"{name} {_version(name)}")
    click.echo(f"operator library {library.version}: {library.path}")
    click.echo(f"ISA in the library: {', '.join(library.isa_compiled)}")
    click.echo(f"ISA of this machine: {', '.join(library.isa_supported)}")
    click.echo(f"ISA used: {library.isa_used or f'none: {library.error}'}")


def _artifact(path: Path, *, as_json: bool, verify: bool) -> None:
    from prosparse_export.artifact.integrity import no_model
    from prosparse_export.artifact.writer import read_manifest

    if not path.is_file():
        raise no_model(path)
    manifest = read_manifest(path)
    if not manifest:
        raise ProSparseError(
            f"manifest: {path.parent}: expected a prosparse.json beside the model, got none",
            hint="only models from prosparse-export have one",
        )
    validation = manifest.get("validation")
    if validation is not None:
        validation["current"] = _is_current(path, validation["artifact"], verify=verify)
    if as_json:
        click.echo(json.dumps(manifest, indent=2))
        return
    ffn = manifest["ffn"]
    click.echo(f"{path}: {manifest['source']['model_type']}, {manifest['weight_format']} weights")
    click.echo(f"attention: {manifest['attention']}; onnxruntime {manifest['onnxruntime']}")
    click.echo(f"sparse FFNs: {ffn['rewritten']}, refused: {ffn['refused']}")
    if (lossy := manifest.get("approximation")) is not None:
        click.echo(f"LOSSY: {describe_approximation(lossy)}")
    if (searched := manifest.get("calibration")) is not None:
        click.echo(f"calibrated: {describe_calibration(searched)}")
    click.echo("exported with: " + ", ".join(f"{name} {v}" for name, v in manifest["versions"].items()))
    if validation is None:
        click.echo(f"not validated: prosparse validate MODEL_DIR {path}")
        return
    for line in _validation_lines(validation):
        click.echo(line)


def _is_current(path: Path, validated: dict[str, Any], *, verify: bool) -> bool:
    """Tell whether these are the files that were validated: the graph, the weights' size and, to verify, their hash."""
    from prosparse_export.artifact.writer import sha256_file

    data = path.with_name(f"{path.name}.data")
    size = data.stat().st_size if data.is_file() else None
    if validated["sha256"] != sha256_file(path) or validated.get("data_bytes") != size:
        return False
    return not verify or size is None or validated.get("data_sha256") == sha256_file(data)


def _verify(path: Path) -> None:
    from prosparse_export.artifact.integrity import check_files

    with stages(quiet=False) as progress:
        checked = check_files(path, verify=True, progress=progress)
    click.echo(f"verified: {checked} files are those that were exported", err=True)


def _validation_lines(validation: dict[str, Any]) -> Iterator[str]:
    verdict = "passed:" if validation["passed"] else f"FAILED: {len(validation['failed'])} of"
    stale = "" if validation["current"] else " (of another version of this file: validate again)"
    yield f"validation {verdict} {validation['checks']} checks{stale}"
    for check in validation["failed"]:
        yield f"  broken: {check['name']}: measured {check['measured']}; allowed {check['allowed']}"
    texts = ", ".join(f"{name} ({digest[:12]})" for name, digest in validation["texts"].items())
    yield f"  text: {validation['tokens']} tokens of {texts}"
    for q in validation["quality"]:
        yield (
            f"  {q['name']}: perplexity {_number(q['perplexity'])} (PyTorch {_number(q['reference_perplexity'])}), "
            f"KL {_number(q['kl_mean'])}, top-1 {q['top1']:.2%}"
        )
    if validation["sparsity"] is not None:
        yield f"  sparsity: {validation['sparsity']['mean']:.2%}"
    yield "  with: " + ", ".join(f"{name} {v}" for name, v in validation["versions"].items())


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.5g}"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
