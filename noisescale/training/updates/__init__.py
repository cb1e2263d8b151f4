"""Updates faster than torch's optimizers."""
