"""Where parameters enter a model, and the per-example gradients that follow from it."""
