"""From a problem to a batch size and a learning rate, within a few minutes."""
