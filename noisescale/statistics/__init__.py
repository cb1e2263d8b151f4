"""Numbers in, estimates out; no torch."""
