"""The graph passes alone, on an ONNX file of another exporter."""

from prosparse_export.optimize.optimize import OptimizeOptions, optimize_file

__all__ = ["OptimizeOptions", "optimize_file"]
