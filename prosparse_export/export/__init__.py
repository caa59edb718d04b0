"""Model folder in, ONNX artifact out: load, trace, rewrite, write, check."""

from prosparse_export.export.export import ExportOptions, export_model

__all__ = ["ExportOptions", "export_model"]
