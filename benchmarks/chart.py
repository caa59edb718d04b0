"""Draw the charts of README and docs/performance from benchmarks/results, for light and dark pages.

python benchmarks/chart.py             # docs/images/{engines,engines-narrow,sparsity,contexts,batches}-{light,dark}.svg

`engines`: decode and prefill of one model in tokens/s, by engine; ours also at level 4 with an 8-bit cache.
`sparsity`: speedup of one FFN over its dense baseline, by activation sparsity, with the limit set by bytes read.
`contexts`: tokens/s and resident memory against the context, by engine (compare_contexts.py).
`batches`: tokens/s of a decode step by the number of sequences, sparse and dense (batch_steps.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import matplotlib
from common import help_text

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from measurements import read, sparsity_sweep, workloads

IMAGES = Path(__file__).parent.parent / "docs" / "images"
ROUNDED = "ours, level 4"
ENGINES = {
    "ours": "prosparse-export",
    ROUNDED: "level 4, 8-bit cache",
    "onnxruntime-genai": None,
    "llama.cpp": None,
    "OpenVINO": None,
}
THEMES = {
    "light": {"text": "#1f2328", "grid": "#d1d9e0", "ours": "#0969da", "other": "#9aa4af", "lost": "#bc4c00"},
    "dark": {"text": "#f0f6fc", "grid": "#3d444d", "ours": "#4493f8", "other": "#6e7781", "lost": "#f0883e"},
}
LINES = ("#0969da", "#1a7f37", "#8250df", "#bf8700", "#cf222e", "#57606a")
Theme = Mapping[str, str]


def engines_figure(
    results: Mapping[str, Any], model: str, weights: str, theme: Theme, *, stacked: bool = False
) -> Figure:
    """Two panels of horizontal bars, side by side or stacked: decode, and the longest prompt measured."""
    rows = workloads(
        results, ("engines",), lambda run: run["model"] == model and run["weights"] == weights and run["threads"] == 2
    )
    exact = [row for row in rows if not {"accuracy_level", "kv_cache"} & row.key.keys()]
    rounded = {
        (row.key["phase"], row.key["context"]): row.engines["ours"]
        for row in rows
        if {"accuracy_level", "kv_cache"} <= row.key.keys()
    }
    lines, columns = (2, 1) if stacked else (1, 2)
    figure, panels = plt.subplots(lines, columns, figsize=(4.2, 5.0) if stacked else (8.4, 2.6))
    for axes, phase, title in (
        (panels[0], "decode", "Decode at {} tokens"),
        (panels[1], "prefill", "Prefill of {} tokens"),
    ):
        row = max((row for row in exact if row.key["phase"] == phase), key=lambda row: row.key["context"])
        context = row.key["context"]
        engines = {**row.engines, ROUNDED: rounded[phase, context]}
        names = [name for name in ENGINES if name in engines]
        speeds = [float(engines[name]["tokens_per_second"]["median"]) for name in names]
        colors = [
            theme["ours"] if name in ("ours", ROUNDED) else theme["lost"] if speed > speeds[0] else theme["other"]
            for name, speed in zip(names, speeds, strict=True)
        ]
        places = range(len(names), 0, -1)
        axes.barh(places, speeds, color=colors, height=0.68)
        labels = [ENGINES[name] or name for name in names]
        axes.set_yticks(places, [label.replace(", ", ",\n") if stacked else label for label in labels])
        for place, speed in zip(places, speeds, strict=True):
            axes.text(speed + max(speeds) * 0.02, place, f"{speed:.0f}", va="center", color=theme["text"], fontsize=10)
        axes.set_title(f"{title.format(context)}, tokens/s", loc="left", color=theme["text"], fontsize=11)
        axes.set_xlim(0, max(speeds) * 1.15)
        axes.set_xticks([])
        _style(axes, theme)
    figure.tight_layout(w_pad=2.5)
    return figure


def sparsity_figure(results: Mapping[str, Any], theme: Theme) -> Figure:
    """Speedup over the dense baseline of one FFN, one line per weight format."""
    runs = [run for run in sparsity_sweep(results)["runs"] if run["engine"] == "dense baseline"]
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    shares = [share / 100 for share in range(100)]
    limit = [3 / (1 + 2 * (1 - share)) for share in shares]
    axes.plot([100 * s for s in shares], limit, "--", color=theme["text"], linewidth=1, label="limit by bytes read")
    for weights, color in zip(dict.fromkeys(run["weights"] for run in runs), LINES, strict=False):
        points = sorted((100 * run["sparsity"], run["ratio"]["median"]) for run in runs if run["weights"] == weights)
        axes.plot(*zip(*points, strict=True), "o-", ms=3.5, linewidth=1.4, color=color, label=weights)
    axes.set_xlabel("activation sparsity, %", color=theme["text"])
    axes.set_ylabel("times the dense baseline", color=theme["text"])
    axes.set_ylim(0.9)
    axes.grid(color=theme["grid"], linewidth=0.6)
    axes.legend(frameon=False, labelcolor=theme["text"])
    _style(axes, theme)
    figure.tight_layout()
    return figure


def contexts_figure(results: Mapping[str, Any], theme: Theme) -> Figure:
    """Two panels against the context: decode speed, and resident memory; one line per engine and KV cache."""
    sessions = [session for session in results["sessions"] if session["suite"] == "contexts"]
    session = next(session for session in sessions if session["runs"][0]["model"] == "llama-2-7b")
    names = list(dict.fromkeys(run["engine"] for run in session["runs"]))
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 3.8))
    for axes, title, value in (
        (panels[0], "Decode, tokens/s", lambda run: run["tokens_per_second"]["median"]),
        (panels[1], "Resident memory, MB", lambda run: run["resident_megabytes"]),
    ):
        for name, color in zip(names, LINES[: len(names)], strict=True):
            points = [(run["context"], value(run)) for run in session["runs"] if run["engine"] == name]
            label = name.replace("ours", "prosparse-export")
            axes.plot(*zip(*points, strict=True), "o-", ms=3.5, linewidth=1.4, color=color, label=label)
        axes.set_title(title, loc="left", color=theme["text"], fontsize=11)
        axes.set_xlabel("context, tokens", color=theme["text"])
        axes.set_ylim(0)
        axes.grid(color=theme["grid"], linewidth=0.6)
        _style(axes, theme)
    lines, labels = panels[0].get_legend_handles_labels()
    figure.tight_layout(w_pad=2.5, rect=(0, 0.14, 1, 1))
    figure.legend(lines, labels, frameon=False, labelcolor=theme["text"], fontsize=9, loc="lower center", ncol=3)
    return figure


def batches_figure(results: Mapping[str, Any], theme: Theme) -> Figure:
    """Tokens/s of a decode step, sparse and dense, by the number of sequences; a color per accuracy level."""
    figure, axes = plt.subplots(figsize=(7.2, 3.6))
    sessions = {
        session["runs"][0]["accuracy_level"]: session
        for session in results["sessions"]
        if session["suite"] == "batch steps" and session["runs"][0]["context"] == 128
    }
    for (level, session), color in zip(sorted(sessions.items()), LINES, strict=False):
        for engine, line in (("ours", "o-"), ("dense baseline", "o--")):
            runs = [run for run in session["runs"] if run["engine"] == engine]
            points = [(run["rows"], run["tokens_per_second"]["median"]) for run in runs]
            label = f"accuracy level {level}, {'sparse' if engine == 'ours' else 'dense'}"
            axes.plot(*zip(*points, strict=True), line, ms=3.5, linewidth=1.4, color=color, label=label)
        axes.set_xticks([run["rows"] for run in runs])
    axes.set_xlabel("sequences in a step", color=theme["text"])
    axes.set_ylabel("tokens/s, all sequences together", color=theme["text"])
    axes.set_ylim(0)
    axes.grid(color=theme["grid"], linewidth=0.6)
    axes.legend(frameon=False, labelcolor=theme["text"], fontsize=9)
    _style(axes, theme)
    figure.tight_layout()
    return figure


def _style(axes: Axes, theme: Theme) -> None:
    axes.tick_params(colors=theme["text"], length=0)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(theme["grid"])
    axes.spines["bottom"].set_visible(bool(axes.get_xticks().size))


@click.command(context_settings={"help_option_names": ["-h", "--help"]}, help=help_text(__doc__))
@click.option("--machine", default="xeon-amx", show_default=True, help="Name of a file in benchmarks/results.")
@click.option("--contexts-machine", default="epyc-zen4", show_default=True, help="Likewise, for contexts and batches.")
@click.option("--model", default="tinyllama", show_default=True)
@click.option("--weights", default="i4", show_default=True)
@click.option(
    "-o", "--output", type=click.Path(file_okay=False, path_type=Path), default=IMAGES, help="Folder for the charts."
)
def main(machine: str, contexts_machine: str, model: str, weights: str, output: Path) -> None:
    """Parse and draw."""
    output.mkdir(parents=True, exist_ok=True)
    results = read(machine)
    matplotlib.rcParams |= {"svg.hashsalt": "prosparse", "font.family": "DejaVu Sans", "font.size": 10}
    for name, theme in THEMES.items():
        for stem, figure in (
            ("engines", engines_figure(results, model, weights, theme)),
            ("engines-narrow", engines_figure(results, model, weights, theme, stacked=True)),
            ("sparsity", sparsity_figure(results, theme)),
            ("contexts", contexts_figure(read(contexts_machine), theme)),
            ("batches", batches_figure(read(contexts_machine), theme)),
        ):
            path = output / f"{stem}-{name}.svg"
            figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
            plt.close(figure)
            click.echo(path)


if __name__ == "__main__":
    main()
