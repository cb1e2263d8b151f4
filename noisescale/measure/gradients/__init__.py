"""Per-example gradients and their moments."""
