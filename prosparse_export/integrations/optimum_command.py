"""``optimum-cli export prosparse --model M OUT``: prosparse-export behind optimum's command line.

optimum-cli imports every module in optimum/commands/register; packaging/namespace has ours. Options other than
``--model`` and ``--task`` are those of prosparse-export, read from its definition.
"""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

import click
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from prosparse_export.cli.export import export_command
from prosparse_export.errors import ProSparseError
from prosparse_export.integrations.command_options import command_options, option_words

__all__ = ["ProSparseExportCommand", "check_task"]

GRAPH = "model.onnx"  # the name that optimum's model classes look for


class ProSparseExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum is untyped
    """Writes OUTPUT/model.onnx and the files next to it."""

    COMMAND = CommandInfo(name="prosparse", help="Export ReLU-sparse models to ONNX with sparse FFNs, for CPUs.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Add the options."""
        parser.description = "Example: optimum-cli export prosparse --model models/demo out/optimum"
        parser.add_argument("-m", "--model", required=True, type=Path, help="Model folder from save_pretrained.")
        parser.add_argument("output", type=Path, help=f"Folder to write {GRAPH} and the files next to it to.")
        parser.add_argument("--task", default="auto", help="A task name of optimum, to be checked.  [default: auto]")
        for option in command_options(export_command):
            text = (option.help or "").replace("%", "%%")
            if option.is_flag:
                parser.add_argument(*option.opts, dest=option.name, action="store_true", help=text)
            else:
                action = "append" if option.multiple else "store"
                parser.add_argument(*option.opts, dest=option.name, action=action, help=text, metavar="VALUE")

    def run(self) -> None:
        """Export; user errors are one line and a hint, exit code 1, or 2 for usage."""
        try:
            check_task(self.args.model, self.args.task)
        except ProSparseError as error:
            click.echo(f"error: {error}\nhint: {error.hint}", err=True)
            raise SystemExit(1) from None
        words = [str(self.args.model), str(self.args.output / GRAPH), *option_words(export_command, vars(self.args))]
        export_command.main(words, prog_name="optimum-cli export prosparse", standalone_mode=True)


def check_task(folder: Path, task: str) -> None:
    """Check that ``task``, a name or synonym of optimum's, is what the model in ``folder`` is exported for.

    Raises:
        ProSparseError: it is another one, or the folder cannot be read.
    """
    if task == "auto":
        return
    from optimum.exporters.tasks import TasksManager  # imports torch

    from prosparse_export.export.encoder_decoder import is_encoder_decoder
    from prosparse_models.loading.hf_config import is_bare
    from prosparse_models.loading.model_config import read_model_config

    if is_encoder_decoder(folder):
        expected = "text2text-generation-with-past"
    else:
        expected = "feature-extraction" if is_bare(read_model_config(folder)) else "text-generation-with-past"
    if TasksManager.map_from_synonym(task) != expected:
        raise ProSparseError(f"task: expected {expected}, got {task}", hint=f"omit --task, or pass --task {expected}")
