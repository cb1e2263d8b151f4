"""What the studies share: short runs in folders, on any executor."""
