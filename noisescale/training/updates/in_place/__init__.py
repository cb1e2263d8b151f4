"""Plain SGD without stored gradients, for as long as it is that of autograd and torch.optim."""
