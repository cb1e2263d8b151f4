"""Steps against batch size: the runs as a matrix, the curves fitted to them, and their errors."""
