"""Weights: read them from a graph, quantize them, and store them in the operators' formats."""
