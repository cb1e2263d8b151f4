"""What the figures share: fonts, colours, and reading a committed table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

# Okabe and Ito's palette, one colour a batch size
BATCH_COLOURS = {"1024": "#0072B2", "32": "#E69F00", "1": "#CC79A7"}
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
}


def read_table(path: Path) -> pd.DataFrame:
    """A committed table, its header of comment lines left out."""
    return pd.read_csv(path, comment="#", dtype={"batch_size": str})
