"""What an artifact's graph computes and reads: FFN nodes, activation counts, bytes, bandwidth."""
