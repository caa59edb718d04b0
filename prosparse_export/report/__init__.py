"""How sparse an artifact is, by layer, neuron, token and text, as a page; docs/guides/validate.md."""

from prosparse_export.report.measure import Report, ReportOptions, measure
from prosparse_export.report.page import png_paths, write_json, write_page, write_pngs

__all__ = ["Report", "ReportOptions", "measure", "png_paths", "write_json", "write_page", "write_pngs"]
