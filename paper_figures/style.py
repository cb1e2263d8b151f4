"""What the figures share: fonts, colours, and reading a committed table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from noisescale.plots.style import BLUE, ORANGE, PURPLE

# one colour a batch size
BATCH_COLOURS = {"1024": BLUE, "32": ORANGE, "1": PURPLE}
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
