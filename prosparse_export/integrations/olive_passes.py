"""Olive passes: `ProSparseExport` and `ProSparseOptimize`, for ``olive run --package-config``.

    python -m prosparse_export.integrations.olive_passes olive-package.json     # Olive's own passes, and these two

The configuration of a pass has the options of ``prosparse-export`` or ``prosparse optimize``, read from the commands'
definitions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler, ONNXModelHandler
from olive.model.handler.base import OliveModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam

from prosparse_export.artifact.manifest import MANIFEST
from prosparse_export.cli.export import export_command
from prosparse_export.cli.optimize import optimize_command
from prosparse_export.errors import ProSparseError
from prosparse_export.integrations.command_options import command_options, option_words

__all__ = ["ProSparseExport", "ProSparseOptimize"]

_OF_A_TERMINAL = {"overwrite", "verbose", "quiet", "as_json"}


class ProSparseExport(Pass):  # type: ignore[misc]  # olive is untyped
    """Exports a model folder of transformers, as ``prosparse-export`` does."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return _parameters(export_command)

    def _run_for_config(self, model: OliveModelHandler, config: BasePassConfig, output_model_path: str) -> Any:
        if not isinstance(model, HfModelHandler) or model.adapter_path is not None:
            raise ValueError("ProSparseExport: expected an HfModel without adapter_path; merge adapters first")
        return _run(export_command, model, config, output_model_path)


class ProSparseOptimize(Pass):  # type: ignore[misc]
    """Rewrites the ReLU FFNs of an ONNX file, as ``prosparse optimize`` does."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return _parameters(optimize_command)

    def _run_for_config(self, model: OliveModelHandler, config: BasePassConfig, output_model_path: str) -> Any:
        if not isinstance(model, ONNXModelHandler):
            raise ValueError("ProSparseOptimize: expected an ONNXModel")
        return _run(optimize_command, model, config, output_model_path)


def _parameters(command: click.Command) -> dict[str, PassConfigParam]:
    parameters = {}
    for option in command_options(command):
        if option.name not in _OF_A_TERMINAL:
            kind: Any = bool if option.is_flag else list[str] if option.multiple else str | int | float
            parameters[option.name] = PassConfigParam(type_=kind, description=option.help or "")
    return parameters


def _run(command: click.Command, model: OliveModelHandler, config: BasePassConfig, output: str) -> ONNXModelHandler:
    """Run ``command``; what the user can mend is a ValueError, for which Olive stops with a nonzero exit code."""
    graph = Path(resolve_onnx_path(output, "model.onnx"))  # the name that Olive gives to a workflow's result
    words = [model.model_path, str(graph), "--quiet", *option_words(command, config.model_dump())]
    try:
        with command.make_context(command.name, words) as context:
            click.Command.invoke(command, context)  # not ours, which prints errors and exits
    except click.ClickException as error:
        raise ValueError(error.format_message()) from None
    except ProSparseError as error:
        raise ValueError(f"{error}\nhint: {error.hint}") from None
    own = {graph.name, f"{graph.name}.data", MANIFEST}  # of this graph; the tokenizer etc. follow it through passes
    others = sorted(str(path) for path in graph.parent.iterdir() if path.name not in own)
    attributes = {**(model.model_attributes or {}), "additional_files": others}
    return ONNXModelHandler(model_path=str(graph.parent), onnx_file_name=graph.name, model_attributes=attributes)


def write_package_config(path: Path) -> None:
    """Write Olive's package configuration with these passes added: it replaces Olive's own."""
    package = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    for each in (ProSparseExport, ProSparseOptimize):
        package["passes"][each.__name__] = {
            "module_path": f"prosparse_export.integrations.olive_passes.{each.__name__}",
            "supported_providers": ["*"],
            "supported_accelerators": ["cpu"],
            "supported_precisions": ["*"],
        }
    path.write_text(json.dumps(package, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_package_config(Path(sys.argv[1]))
