"""``prosparse info``."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version

import click

from prosparse_export.cli.command import CONTEXT, ProSparseCommand

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
"""


@click.command("info", cls=ProSparseCommand, context_settings=CONTEXT, epilog=_EXAMPLES)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info_command(as_json: bool) -> None:
    """Show versions, the operator library, and the instruction set that its kernels use."""
    from prosparse_export.library import library_info

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


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
