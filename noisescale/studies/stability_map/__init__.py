"""Batch size × learning rate: a search for the edge of stability, its prediction, tables."""
