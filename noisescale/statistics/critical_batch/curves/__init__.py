"""Steps against batch size and examples: runs as a matrix, curves fitted to them, their errors."""
