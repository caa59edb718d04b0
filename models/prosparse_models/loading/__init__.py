"""Load model folders into PyTorch models without running code from them."""
