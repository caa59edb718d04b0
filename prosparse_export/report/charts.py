"""Draw the charts of a report with matplotlib.

Series differ in dash and marker as well as in color, for readers without color vision and for print. Figures are as
wide as a phone, so that their text stays readable there.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from prosparse_export.report.result import Report

__all__ = ["CHARTS", "draw", "save"]

# Okabe and Ito's palette, which all kinds of color vision can distinguish.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9")
_DASHES = ("-", "--", ":", "-.", (0, (5, 1)), (0, (1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "x")
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
}
_SHOWN = 6  # layers per line chart


def draw(name: str, report: Report) -> Figure:
    """Return the chart ``name``, one of `CHARTS`."""
    import matplotlib

    title, height, plot = CHARTS[name]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.4, height(report)), layout="constrained")
        axes = figure.add_subplot()
        axes.set_axisbelow(True)
        plot(axes, report)
        figure.suptitle("")
        axes.set_title(title, loc="left", fontsize=9)
    return figure


def save(name: str, report: Report, kind: str, **options: Any) -> bytes:
    """Return the chart ``name`` as SVG or PNG (``kind``); ``options`` go to ``Figure.savefig``."""
    import matplotlib

    stream = io.BytesIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):  # saving creates texts and ids
        draw(name, report).savefig(stream, format=kind, **options)
    return stream.getvalue()


def _shown(report: Report) -> list[int]:
    """Return the layers of a line chart: the first, the last and some between."""
    count = len(report.layers)
    return sorted({round(k) for k in np.linspace(0, count - 1, min(_SHOWN, count))})


def _lines(axes: Axes, report: Report, values: Callable[[int], tuple[Any, Any]], *, markers: bool = False) -> None:
    for k, i in enumerate(_shown(report)):
        x, y = values(i)
        axes.plot(
            x,
            y,
            color=_COLORS[k],
            linestyle=_DASHES[k],
            linewidth=1.4,
            marker=_MARKERS[k] if markers else None,
            markersize=3.5,
            label=f"layer {i}",
        )
    _legend(axes, ncols=3)


def _legend(axes: Axes, *, ncols: int) -> None:
    """Put the legend below the axes and their label."""
    axes.figure.legend(frameon=False, fontsize=8, handlelength=3, ncols=ncols, loc="outside lower center")


def _decimal_ticks(axes: Axes, which: str) -> None:
    """Label a logarithmic axis 1, 10, 100: exponents are too small to read on a phone."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _by_layer(axes: Axes, report: Report) -> None:
    layers = report.layers
    place = np.arange(len(layers))
    active = [100 * (1 - layer.skipped) for layer in layers]
    axes.barh(place, active, color="#9ecae1", edgecolor="#08519c", height=0.7)
    reach = max(100 * (1 - layer.quantiles[0]) for layer in layers)
    for i, layer in enumerate(layers):
        high, q3, middle, q1, low = (100 * (1 - q) for q in layer.quantiles)
        axes.plot([low, high], [i, i], color="black", linewidth=0.9)
        axes.plot([q1, q3], [i, i], color="black", linewidth=3, solid_capstyle="butt")
        axes.plot([middle], [i], marker="|", color="white", markersize=6, markeredgewidth=1.2)
        if len(layers) <= 40:
            axes.text(max(high, active[i]) + reach / 50, i, f"{100 * layer.sparsity:.1f}%", va="center", fontsize=7.5)
    axes.set_xlim(0, reach * 1.15)
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.set_yticks(place if len(layers) <= 40 else place[:: len(layers) // 20])
    axes.set_xlabel("active neurons, % (label: activation sparsity)")
    axes.set_ylabel("layer")
    axes.grid(visible=False, axis="y")


def _histogram(axes: Axes, report: Report) -> None:
    def values(i: int) -> tuple[object, object]:
        layer = report.layers[i]
        ends = np.linspace(0, layer.histogram_end * layer.d_ff, len(layer.histogram) + 1)
        return np.repeat(ends, 2)[1:-1], np.repeat(100 * np.asarray(layer.histogram), 2)

    _lines(axes, report, values)
    axes.set_xscale("symlog", linthresh=10)
    axes.set_xlim(left=0)
    _decimal_ticks(axes, "x")
    axes.set_xlabel("active neurons per token")
    axes.set_ylabel("tokens per bin, %")


def _neurons(axes: Axes, report: Report) -> None:
    def values(i: int) -> tuple[object, object]:
        activity = np.asarray(report.layers[i].activity)
        return np.linspace(0, 100, len(activity)), np.maximum(100 * activity, 1e-3)

    _lines(axes, report, values)
    axes.set_yscale("log")
    _decimal_ticks(axes, "y")
    axes.set_ylim(100 / report.tokens / 1.5, 130)
    axes.axhline(50, color="#888888", linewidth=0.7)
    axes.axhline(1, color="#888888", linewidth=0.7)
    axes.text(50, 54, "hot", va="bottom", ha="center", fontsize=7.5)
    axes.text(50, 0.9, "rare", va="top", ha="center", fontsize=7.5)
    axes.set_xlabel("neurons, most active first, %")
    axes.set_ylabel("tokens that activate it, %")


def _positions(axes: Axes, report: Report) -> None:
    _lines(axes, report, lambda i: (report.positions, [100 * s for s in report.layers[i].by_position]), markers=True)
    axes.set_xscale("log")
    _decimal_ticks(axes, "x")
    axes.set_xlabel("position in the window")
    axes.set_ylabel("inactive neurons, %")


def _texts(axes: Axes, report: Report) -> None:
    active = [
        100 * (1 - float(np.mean([layer.by_text[t] for layer in report.layers]))) for t in range(len(report.texts))
    ]
    axes.barh(np.arange(len(active)), active, color="#9ecae1", edgecolor="#08519c", height=0.4)
    for i, (name, mean) in enumerate(zip(report.texts, active, strict=True)):
        axes.text(max(active) / 100, i - 0.25, f"{name[:44]}: {100 - mean:.1f}% inactive", va="bottom", fontsize=8)
    axes.set_xlim(0, max(active) * 1.05)
    axes.set_yticks([])
    axes.set_ylim(len(active) - 0.6, -0.9)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("active neurons, mean over layers, %")


def _kept(axes: Axes, report: Report) -> None:
    place = np.arange(len(report.layers))
    axes.plot(place, [100 * layer.kept for layer in report.layers], "o-", color=_COLORS[0], label="measured", ms=4)
    chance = [100 * layer.kept_by_chance for layer in report.layers]
    axes.plot(place, chance, "s--", color=_COLORS[1], label="if tokens were independent", ms=4, mfc="white")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("layer")
    axes.set_ylabel("active for the previous token, %")
    _legend(axes, ncols=2)
    if len(place) <= 12:
        axes.set_xticks(place)


def _speed(axes: Axes, report: Report) -> None:
    place = np.arange(len(report.layers))
    speeds = [layer.speed for layer in report.layers]
    measured = [s.ratio if s else np.nan for s in speeds]
    spread = np.array([[s.ratio - s.ratio_low, s.ratio_high - s.ratio] if s else [np.nan, np.nan] for s in speeds]).T
    axes.bar(place, measured, color="#9ecae1", edgecolor="#08519c", width=0.6, label="measured, quartiles")
    axes.errorbar(place, measured, yerr=np.maximum(spread, 0), fmt="none", ecolor="black", elinewidth=1, capsize=2)
    ceilings = [layer.ceiling for layer in report.layers]
    axes.plot(place, ceilings, "D", color=_COLORS[1], ms=4, label="max speedup by weights read")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylim(0, max(1.5, *(1.25 * value for value in (*ceilings, *(m for m in measured if m == m)))))
    axes.set_xlabel("layer")
    axes.set_ylabel("speedup over function body")
    _legend(axes, ncols=2)
    axes.grid(visible=False, axis="x")
    if len(place) <= 12:
        axes.set_xticks(place)


def _calibration(axes: Axes, report: Report) -> None:
    search = report.calibration
    if search is None:
        raise ValueError("calibration: the manifest has no threshold search")
    points = [p for p in search.trials if np.isfinite(p.perplexity)]
    x = [p.value for p in points]
    axes.plot(x, [100 * p.sparsity for p in points], "o-", color=_COLORS[0], ms=4)
    chosen = search.chosen.value
    axes.axvline(chosen, color="#666666", linewidth=0.9, linestyle=":")
    side = "right" if 2 * chosen > max(x) else "left"
    axes.text(chosen, 0.03, " chosen ", transform=axes.get_xaxis_transform(), ha=side, fontsize=7.5)
    is_threshold = search.search_parameter == "threshold"
    axes.set_xlabel("threshold" if is_threshold else "fraction of each layer's energy dropped")
    axes.set_ylabel("activation sparsity, % (circles)")
    other = axes.twinx()
    other.spines["right"].set_visible(True)
    other.grid(visible=False)
    other.plot(x, [p.perplexity for p in points], "s--", color=_COLORS[1], ms=4, mfc="white")
    other.set_ylabel("perplexity (squares)")


Chart = tuple[str, Callable[[Report], float], Callable[[Axes, Report], None]]
CHARTS: dict[str, Chart] = {
    "layers": ("Active neurons by layer", lambda r: 1.0 + 0.22 * max(len(r.layers), 4), _by_layer),
    "histogram": ("Active neurons per token", lambda _: 3.0, _histogram),
    "neurons": ("How often each neuron is active", lambda _: 3.0, _neurons),
    "positions": ("Inactive neurons by position", lambda _: 3.0, _positions),
    "texts": ("Active neurons by text", lambda r: 0.9 + 0.42 * len(r.texts), _texts),
    "kept": ("Neurons active for consecutive tokens", lambda _: 2.8, _kept),
    "speed": ("Speedup by layer, single token", lambda _: 3.0, _speed),
    "calibration": ("Threshold search: sparsity, perplexity", lambda _: 3.0, _calibration),
}
