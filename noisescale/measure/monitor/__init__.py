"""The noise scale in anybody's training loop, from gradients that are there already."""
