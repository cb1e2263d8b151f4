"""Measurements along a training run, appended to tables in its folder."""
