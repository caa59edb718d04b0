"""Run an artifact in onnxruntime, without torch."""
