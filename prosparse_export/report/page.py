"""Write a report as one self-contained HTML page and as PNG files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prosparse_export.atomic_write import atomic_write
from prosparse_export.errors import ProSparseError
from prosparse_export.report.result import Report

__all__ = ["png_paths", "render_page", "write_page", "write_pngs"]

_CAPTIONS = {
    "layers": "Bars: active neurons, mean over all tokens. Black: spread over tokens, thin from 5 to 95%, thick from "
    "25 to 75%, with a white tick at the median. Labels: activation sparsity, the fraction of exact zeros at "
    "down_proj's input. With dReLU it includes zeros of up_proj's ReLU, although those neurons' weights are read.",
    "histogram": "How many neurons are active per token. Compute time depends on the distribution, not only its mean.",
    "neurons": "Neurons above the upper line are hot, those below the lower line rare. Where a curve ends, all "
    "remaining neurons are dead: no token activates them.",
    "positions": "Mean over all windows, by position in the window. The first positions average over few tokens.",
    "texts": "The same model on each text.",
    "kept": "Active neurons that were also active for the previous token. Caching their weights can gain at most what "
    "lies above the dashed line.",
    "speed": "Time of the operator's ONNX function body (stock onnxruntime, float32) over that of the sparse kernel, "
    "alternating in one process. Unlike the dense baseline of prosparse bench, the body does not run our kernels. The "
    "maximum counts weights read in the same format: 3 / (1 + 2a) with a fraction a of active neurons, or 2 / (1 + a) "
    "for an ungated FFN. Formats narrower than float32 can exceed it; small layers may not reach it.",
    "calibration": "Trials of prosparse calibrate before the export. Chosen: {search.search_parameter} "
    "{search.chosen.value:.4g}, sparsity {sparsity:.2f}%, perplexity {search.chosen.perplexity:.4g} within a budget "
    "of {search.perplexity_limit:.4g}.",
}


def charts_of(report: Report) -> list[str]:
    """Return the names of the charts that this report has data for."""
    from prosparse_export.report.charts import CHARTS

    missing = {"calibration"} if report.calibration is None else set()
    if all(layer.speed is None for layer in report.layers):
        missing.add("speed")
    return [name for name in CHARTS if name not in missing]


def render_page(report: Report) -> str:
    """Return the page as HTML, without scripts or external resources."""
    jinja2 = _jinja2()
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
        ProSparseError: the file cannot be written, or an optional package is missing.
    """
    atomic_write(path, render_page(report).encode())


def png_paths(folder: Path) -> list[Path]:
    """Return the files that `write_pngs` may write, one per kind of chart.

    Raises:
        ProSparseError: an optional package is missing.
    """
    _jinja2()
    from prosparse_export.report.charts import CHARTS

    return [folder / f"{name}.png" for name in CHARTS]


def write_pngs(report: Report, folder: Path) -> list[Path]:
    """Write every chart as a PNG into ``folder`` and return their paths."""
    _jinja2()
    from prosparse_export.report.charts import save

    paths = []
    for name in charts_of(report):
        paths.append(folder / f"{name}.png")
        atomic_write(paths[-1], save(name, report, "png", dpi=200))
    return paths


def _jinja2() -> Any:
    """Return the module jinja2."""
    try:
        import jinja2
        import matplotlib  # noqa: F401  # checked here, used by charts
    except ImportError as error:
        raise ProSparseError(
            f"report: needs the package {error.name}, which is not installed",
            hint="pip install '.[report]'",
        ) from error
    return jinja2


def _svg(name: str, report: Report) -> str:
    from prosparse_export.report.charts import save

    text = save(name, report, "svg", metadata={"Date": None, "Creator": None}).decode()
    text = text[text.index("<svg") :]
    # Ids must be unique on the page, and the page sets the width.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    return re.sub(r'<svg ([^>]*?)(?:width|height)="[^"]+" ', r"<svg \1", text, count=1)
