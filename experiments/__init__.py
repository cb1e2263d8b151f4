"""One file per experiment: a grid of runs and what to measure."""
