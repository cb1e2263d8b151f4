"""What models score: accuracies with intervals, bias and variance, lines between models."""
