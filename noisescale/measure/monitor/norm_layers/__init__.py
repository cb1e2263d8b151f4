"""The noise scale of a step of one batch, from the gradients of its norm layers."""
