"""Batch size × learning rate: cells on any executor, a search for the edge, its prediction, tables."""
