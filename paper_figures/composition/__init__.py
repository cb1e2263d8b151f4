"""Figures of what gradient noise is made of."""
