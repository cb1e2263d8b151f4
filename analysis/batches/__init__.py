"""What the batch size does to the result, to the minimum and to the clock."""
