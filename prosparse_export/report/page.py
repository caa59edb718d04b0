"""Write a report: one HTML page with everything in it, PNG files, JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from prosparse_export.artifact.atomic_write import atomic_write
from prosparse_export.errors import ProSparseError
from prosparse_export.report.measure import Report

__all__ = ["png_paths", "render_page", "write_json", "write_page", "write_pngs"]

_CAPTIONS = {
    "layers": "Bars: share of neurons that are not exactly zero at down_proj's input, over all tokens. "
    "Black: single tokens, 5 to 95 % thin, "
    "25 to 75 % thick, white tick the median.",
    "histogram": "How many neurons a token uses. Work, and so time, follows this, not the mean.",
    "neurons": "Above the upper line hot, below the lower line rare; what ends before 100 % is dead on this text.",
    "positions": "Mean over the windows, by place in a window of context; first places have few tokens to average.",
    "texts": "The same model on each text.",
    "kept": "Of the neurons active for a token, those active for the token before. What lies above "
    "the dashed line is what keeping their weights in a cache can gain.",
    "speed": "Dense is the operator's own ONNX body on stock onnxruntime, which computes in float32, in turns with the "
    "sparse kernel in one process. The ceiling counts weights read in the same format: 3 / (1 + 2 (1 - s)), or "
    "2 / (2 - s) without a gate; a narrower format than float32 can pass it, a small layer may not reach it.",
    "calibration": "Trials of prosparse calibrate before the export. Chosen: {search.search_parameter} "
    "{search.chosen.value:.4g}, sparsity {sparsity:.2f} %, perplexity {search.chosen.perplexity:.4g}; its budget "
    "allowed {search.perplexity_limit:.4g}.",
}


def charts_of(report: Report) -> list[str]:
    """Return the names of the charts that this report has numbers for."""
    from prosparse_export.report.charts import CHARTS

    missing = {"calibration"} if report.calibration is None else set()
    if all(layer.speed is None for layer in report.layers):
        missing.add("speed")
    return [name for name in CHARTS if name not in missing]


def render_page(report: Report) -> str:
    """Return the page: no script, no other file, nothing from a network."""
    jinja2 = _extra()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("prosparse_export.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    figures = [
        (name, jinja2.utils.markupsafe.Markup(_svg(name, report)), _caption(name, report)) for name in charts_of(report)
    ]
    page: str = environment.get_template("report.html").render(report=report, figures=figures)
    return page


def _caption(name: str, report: Report) -> str:
    if name == "calibration" and report.calibration is not None:
        return _CAPTIONS[name].format(search=report.calibration, sparsity=100 * report.calibration.chosen.sparsity)
    return _CAPTIONS[name]


def write_page(report: Report, path: Path) -> None:
    """Write the page.

    Raises:
        ProSparseError: it cannot be written, or the extra packages are missing.
    """
    atomic_write(path, render_page(report).encode())


def png_paths(folder: Path) -> list[Path]:
    """Return the files that `write_pngs` may write, one for each kind of chart.

    Raises:
        ProSparseError: the extra packages are missing.
    """
    _extra()
    from prosparse_export.report.charts import CHARTS

    return [folder / f"{name}.png" for name in CHARTS]


def write_pngs(report: Report, folder: Path) -> list[Path]:
    """Write every chart as a PNG into ``folder`` and return their paths."""
    _extra()
    from prosparse_export.report.charts import save

    paths = []
    for name in charts_of(report):
        paths.append(folder / f"{name}.png")
        atomic_write(paths[-1], save(name, report, "png", dpi=200))
    return paths


def write_json(report: Report, path: Path) -> None:
    """Write the numbers."""
    atomic_write(path, (json.dumps(report.to_dict(), indent=2) + "\n").encode())


def _extra() -> Any:
    """Return jinja2."""
    try:
        import jinja2
        import matplotlib  # noqa: F401  # asked for here, used by charts
    except ImportError as error:
        raise ProSparseError(
            f"report: needs the package {error.name}, which is not installed",
            hint='pip install "prosparse-export[report]"',
        ) from error
    return jinja2


def _svg(name: str, report: Report) -> str:
    from prosparse_export.report.charts import save

    text = save(name, report, "svg", metadata={"Date": None, "Creator": None}).decode()
    text = text[text.index("<svg") :]
    # One page, many drawings: ids must differ. And no size of its own: the page sets the width.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    return re.sub(r'<svg ([^>]*?)(?:width|height)="[^"]+" ', r"<svg \1", text, count=1)
