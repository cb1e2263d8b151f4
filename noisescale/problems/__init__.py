"""Models, losses, data sets, and which examples in which order."""
