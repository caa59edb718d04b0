"""A model folder becomes a PyTorch model, without running code from it."""
