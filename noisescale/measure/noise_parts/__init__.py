"""What a noise scale takes beside the norms of per-example gradients."""
