"""Recognize what the passes rewrite: linear layers, activations, FFNs, attention heads, RoPE."""
