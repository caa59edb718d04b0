"""Default number of threads: one per physical core that the process may use.

onnxruntime's default counts all cores of the machine, even those that a container quota or `taskset` excludes. With
more threads than cores, threads wait for each other at every operator.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["default_threads"]

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def default_threads(topology: Path = _TOPOLOGY, quota: Path = _QUOTA) -> int:
    """Return the number of physical cores in the affinity mask, limited by the CPU quota (rounded up), at least 1.

    Args:
        topology: Linux's CPU topology; if it is missing, every logical CPU counts.
        quota: the control group's cpu.max, "QUOTA PERIOD" or "max PERIOD"; if it is missing, there is no limit.
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
    except (OSError, ValueError):  # "max", or no cgroup v2
        return os.cpu_count() or 1
