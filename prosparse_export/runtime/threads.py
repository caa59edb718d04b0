"""How many threads a session gets if nobody says: one for each physical core that this process may use.

onnxruntime's own default counts all cores of the machine, also those that a container's quota or `taskset` keeps
from the process; more threads than cores wait for each other at every operator.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["default_threads"]

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def default_threads(topology: Path = _TOPOLOGY, quota: Path = _QUOTA) -> int:
    """Return physical cores in the process's affinity mask, at most its quota rounded up, at least 1.

    Args:
        topology: Linux's description of the processors; without it every processor counts.
        quota: the control group's limit, "microseconds period" or "max period"; without it there is none.
    """
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = len({_siblings(topology, cpu) for cpu in allowed})
    return max(1, min(cores, _limit(quota)))


def _siblings(topology: Path, cpu: int) -> str:
    try:
        return (topology / f"cpu{cpu}" / "topology" / "thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _limit(quota: Path) -> int:
    try:
        limit, period = quota.read_text().split()
        return max(1, math.ceil(int(limit) / int(period)))
    except (OSError, ValueError):  # "max", or no control groups of version 2
        return os.cpu_count() or 1
