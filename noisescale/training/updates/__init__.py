"""Updates of a model, and ways faster than torch's optimizers where these change nothing."""
