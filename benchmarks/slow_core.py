"""FFNs with two threads, one of them on a slow core: how much of the speed is left.

    python benchmarks/slow_core.py --weights i4
    python benchmarks/slow_core.py --weights i4 --against OLD/libprosparse_ops.so

Each load is a process of its own on the second core (Linux, two free cores):

    none    no load: the baseline, for each library its own
    slow    a real-time process takes the core for 25 us, sleeps for 40 us, and so on (needs root)
    nice    a busy loop at nice 10
    busy    a busy loop: the scheduler gives the core to it and to our thread in turn, for some milliseconds

A loop on the second core measures the share s that a load leaves. Compute-bound work keeps at most (1 + s) / 2 of its
speed, printed as the bound; memory-bound work can keep more. Each thread has a core of its own. Sessions take turns of
a second, so that the threads of one sleep while the other runs.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from common import help_text, machine
from engines.ffn_graphs import SHAPES, Run
from engines.ffn_ours import FfnLayers

from graph_passes import FFN_FORMATS
from prosparse_export.cli.accuracy_option import accuracy_level_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graph_passes.custom_ops import AccuracyLevel

_BUSY = "import os; os.sched_setaffinity(0, [{core}]); os.nice({nice})\nwhile True: pass"
_SLOW = """
import os, time
os.sched_setaffinity(0, [{core}])
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))
while True:
    end = time.perf_counter_ns() + 25_000
    while time.perf_counter_ns() < end: pass
    time.sleep(40e-6)
"""
# Before any thread is bound to one of them; empty where the system cannot do that.
_CORES = sorted(os.sched_getaffinity(0))[:2] if hasattr(os, "sched_getaffinity") else []
_LOADS = {
    "none": None,
    "slow": _SLOW,
    "nice": _BUSY.replace("{nice}", "10"),
    "busy": _BUSY.replace("{nice}", "0"),
}


@contextmanager
def load(kind: str) -> Iterator[None]:
    """Keep the second core busy meanwhile."""
    script = _LOADS[kind]
    if script is None:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", script.format(core=_CORES[1])])
    try:
        time.sleep(0.5)
        if process.poll() is not None:
            raise click.ClickException(f"load '{kind}' ended with {process.returncode}")
        yield
    finally:
        process.kill()
        process.wait()


def calls_per_second(run: Run, seconds: float) -> float:
    """Return how often ``run`` ends within some seconds."""
    calls, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        run()
        calls += 1
    return calls / (time.perf_counter() - began)


def loops_per_second(core: int) -> float:
    """Return the speed of a loop on a core."""
    os.sched_setaffinity(0, [core])
    return calls_per_second(lambda: None, 0.5)


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=help_text(__doc__))
@click.option("--shape", "shapes", type=click.Choice(list(SHAPES)), multiple=True, default=("tinyllama",))
@click.option("--weights", type=click.Choice(FFN_FORMATS), multiple=True, default=("i4",))
@click.option("--tokens", "token_counts", type=click.IntRange(1), multiple=True, default=(1, 128))
@click.option("--rounds", type=click.IntRange(3), default=7, show_default=True)
@click.option("--against", type=click.Path(path_type=Path, exists=True), help="Another build of the operator library.")
@accuracy_level_option()
def main(
    shapes: tuple[str, ...],
    weights: tuple[str, ...],
    token_counts: tuple[int, ...],
    rounds: int,
    against: Path | None,
    accuracy_level: AccuracyLevel,
) -> None:
    """Measure each load in turn, with 89% activation sparsity."""
    if len(_CORES) < 2:
        raise click.ClickException("needs Linux and two cores")
    click.echo(", ".join(f"{key} {value}" for key, value in machine().items()))
    for shape, kind, tokens in ((SHAPES[s], w, n) for s in shapes for w in weights for n in token_counts):
        x = np.random.default_rng(1).standard_normal((tokens, shape.d_model), np.float32)
        first, second = _CORES
        with tempfile.TemporaryDirectory() as folder:
            layers = FfnLayers(shape, kind, x, Path(folder), level=accuracy_level)
            os.sched_setaffinity(0, [second])  # sessions' threads inherit it
            runs = {"ours": layers.session(0.89, 2)[0]}
            if against is not None:
                runs["other library"] = layers.session(0.89, 2, library=against)[0]
            free: dict[str, float] = {"core": loops_per_second(second)}
            for name in _LOADS:
                with load(name):
                    share = min(1.0, loops_per_second(second) / free["core"])
                    os.sched_setaffinity(0, [first])
                    rates = [{who: calls_per_second(run, 1.0) for who, run in runs.items()} for _ in range(rounds)]
                for who in runs:
                    own = sorted(rate[who] for rate in rates)
                    middle = statistics.median(own)
                    unloaded = free.setdefault(who, middle)
                    low, high = own[len(own) // 4] / unloaded, own[-1 - len(own) // 4] / unloaded
                    click.echo(
                        f"{shape.name:11}{kind:>5} n={tokens:<4} {name:5}{who:14}{middle:8.1f} calls/s "
                        f"{middle / unloaded:5.0%} [{low:.0%}, {high:.0%}]  bound {(1 + share) / 2:.0%}"
                    )


if __name__ == "__main__":
    main()
