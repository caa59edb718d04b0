"""Run the graph passes on any ONNX file."""

from prosparse_export.optimize.optimize import OptimizeOptions, OptimizeResult, optimize_file

__all__ = ["OptimizeOptions", "OptimizeResult", "optimize_file"]
