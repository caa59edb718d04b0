"""Weights: where they come from in a graph, and the operators' storage formats."""
