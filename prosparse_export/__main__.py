"""``python -m prosparse_export``: for launchers that start modules, torchrun and accelerate."""

from prosparse_export.cli import main

main()
