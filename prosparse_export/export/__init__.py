"""Model folder in, ONNX artifact out: load, trace, rewrite, write, check."""

from prosparse_export.export.export import ExportResult, export_model
from prosparse_export.export.options import Approximation, ExportOptions

__all__ = ["Approximation", "ExportOptions", "ExportResult", "export_model"]
