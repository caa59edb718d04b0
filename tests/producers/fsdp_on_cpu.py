"""The command line, with accelerate's FSDP on CPUs: what tests/integration/test_sparsify.py launches.

accelerate 1.15 shards on accelerators only and takes DDP on a CPU without a word, whatever the config file says.
Sharding itself runs on gloo, so this sets the one field that it decides by.
"""

from __future__ import annotations

from typing import Any

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from prosparse_export.cli import main

_init = AcceleratorState.__init__


def _with_fsdp(self: AcceleratorState, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
    _init(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
    plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")
    if plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, plugin


AcceleratorState.__init__ = _with_fsdp
main()
