"""Show how sparse an artifact is, by layer, neuron, token and text, as one page; docs/guides/report.md."""

from prosparse_export.report.measure import ReportOptions, measure
from prosparse_export.report.page import png_paths, write_page, write_pngs
from prosparse_export.report.result import LayerReport, Report

__all__ = ["LayerReport", "Report", "ReportOptions", "measure", "png_paths", "write_page", "write_pngs"]
