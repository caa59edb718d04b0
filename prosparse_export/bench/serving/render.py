"""Show the result of a load as text and as a chart."""

from __future__ import annotations

import io
from pathlib import Path

from prosparse_export.atomic_write import atomic_write
from prosparse_export.bench.serving.result import LoadResult, Point, Quantiles
from prosparse_export.errors import ProSparseError

__all__ = ["as_text", "plot"]

_LONG = {"TTFT": "time to first token", "ITL": "inter-token latency"}


def as_text(result: LoadResult) -> str:
    """Return the lines for a terminal."""
    head = f"{'load':>16}{'requests':>10}{'refused':>9}{'tokens/s':>10}{'TTFT':>24}{'ITL':>24}"
    legend = "time to first token (TTFT) and inter-token latency (ITL) in ms: p50 / p95 / p99"
    return "\n".join([f"{result.model} at {result.url}", legend, head, *map(_line, result.points)])


def _line(point: Point) -> str:
    load = f"{point.load}: {point.value:g}"
    numbers = f"{point.requests:>10}{point.refused:>9}{point.tokens_per_second:>10.1f}"
    return f"{load:>16}{numbers}{_milliseconds(point.first_token):>24}{_milliseconds(point.between_tokens):>24}"


def _milliseconds(values: Quantiles) -> str:
    return " / ".join(f"{1e3 * value:.0f}" for value in (values.p50, values.p95, values.p99))


def plot(result: LoadResult, path: Path) -> None:
    """Draw throughput and the two latencies by load.

    Raises:
        ProSparseError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ProSparseError(
            "plot: needs matplotlib, which is not installed", hint="pip install '.[report]'"
        ) from error
    kinds = list(dict.fromkeys(point.load for point in result.points))
    figure = Figure(figsize=(10, 3.2 * len(kinds)), layout="constrained")
    for kind, row in zip(kinds, figure.subplots(len(kinds), 3, squeeze=False), strict=True):
        points = [point for point in result.points if point.load == kind]
        values = [point.value for point in points]
        row[0].plot(values, [point.tokens_per_second for point in points], "o-", color="#0072B2")
        row[0].set(ylabel="tokens/s", ylim=(0, None))
        for axes, name, label in ((row[1], "first_token", "TTFT"), (row[2], "between_tokens", "ITL")):
            for quantile, style in (("p50", "o-"), ("p95", "s--"), ("p99", "^:")):
                times = [1e3 * getattr(getattr(point, name), quantile) for point in points]
                axes.plot(values, times, style, label=quantile)
            axes.set(ylabel=f"{_LONG[label]} ({label}), ms", ylim=(0, None))
            axes.legend()
        for axes in row:
            axes.set_xlabel(kind)
    stream = io.BytesIO()
    figure.savefig(stream, format=path.suffix.lstrip(".") or "png", dpi=120)
    atomic_write(path, stream.getvalue())
