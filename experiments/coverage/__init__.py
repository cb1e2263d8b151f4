"""How often intervals hold a truth that is known, by simulation: one file an estimator."""
