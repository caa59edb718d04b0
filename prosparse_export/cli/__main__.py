"""``python -m prosparse_export.cli`` is ``prosparse-export``."""

from prosparse_export.cli import export_command

export_command(prog_name="prosparse-export")
