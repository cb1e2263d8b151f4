"""Which learning rates are stable, and what curvature does on the way."""
