"""Batch size × learning rate: cells on any executor, a search for the edge, its prediction, tables."""

from noisescale.sweep.cell import Cell, file_digest, run_cell
from noisescale.sweep.config import Horizon, SweepConfig
from noisescale.sweep.engine import SweepOptions, run_sweep
from noisescale.sweep.results import SweepResult

__all__ = [
    "Cell",
    "Horizon",
    "SweepConfig",
    "SweepOptions",
    "SweepResult",
    "file_digest",
    "run_cell",
    "run_sweep",
]
