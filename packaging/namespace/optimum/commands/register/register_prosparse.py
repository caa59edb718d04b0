"""Read by optimum-cli at start: registers ``optimum-cli export prosparse``. The folders above are a namespace."""

from optimum.commands.export.base import ExportCommand

from prosparse_export.integrations.optimum_command import ProSparseExportCommand

REGISTER_COMMANDS = [(ProSparseExportCommand, ExportCommand)]
