"""Gradient noise along training, and what it says of the batch size."""
