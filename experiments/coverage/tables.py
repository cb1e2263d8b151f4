"""Where the tables of coverages lie, and what their headers say."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from noisescale.training.records.environment import environment
from noisescale.training.records.folder import write_atomically

TABLES = Path(__file__).parent.parent.parent / "paper_figures" / "data" / "coverage"


def write_coverage(path: Path, rows: list[dict[str, Any]], *, command: str, seeds: str) -> None:
    """Writes a table of coverages under comments that say how it came about."""
    made = environment("cpu")
    header = {
        "command": command,
        "commit": made["commit"],
        "machine": f"{made['device']}, {made['threads']} threads a run, torch {made['torch']}",
        "date": datetime.datetime.now(datetime.UTC).date(),
        "seeds": seeds,
    }
    lines = "".join(f"# {name}: {value}\n" for name, value in header.items())
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows).to_csv(index=False, float_format="%.4g")
    write_atomically(path, (lines + table).encode())
