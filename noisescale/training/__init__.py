"""The trainer, and what a run leaves on disk."""
