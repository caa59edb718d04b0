"""Doors from other tools: optimum's command line, Olive's passes. Each imports its tool only when that tool asks."""
