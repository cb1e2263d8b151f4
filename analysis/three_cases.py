"""How do B = 1024, 32 and 1 end, at raw and at unit pixels? Curves, final scores, confusion counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import pandas as pd

from analysis.tables import DATA, mean_and_std, read_runs, write_committed_table
from noisescale.run_tables import CONFUSION, read_metrics
from noisescale.store import experiment_command

CASE = ["pixel_scale", "batch_size"]
SCORES = ["train_loss", "train_accuracy", "test_loss", "test_accuracy", "test_f1", "seconds"]


def curves_table(runs: list[tuple[Path, dict[str, Any]]]) -> pd.DataFrame:
    """A row per case, epoch and split: mean and standard deviation over seeds of loss, accuracy and F1."""
    rows = pd.concat(
        [
            pd.DataFrame(read_metrics(folder)).assign(**{name: record[name] for name in [*CASE, "seed"]})
            for folder, record in runs
        ]
    )
    grouped = rows.groupby([*CASE, "epoch", "split"])
    return mean_and_std(grouped, ["loss", "accuracy", "f1"])


def final_table(runs: list[tuple[Path, dict[str, Any]]]) -> pd.DataFrame:
    """A row per case: final scores, mean and standard deviation over seeds, and where the runs diverged."""
    rows = pd.DataFrame(
        {
            **{name: record[name] for name in [*CASE, "seed", "steps", "epochs", "seconds"]},
            **{
                f"{split}_{score}": record[split][score]
                for split in ("train", "test")
                for score in ("loss", "accuracy", "f1")
            },
            "diverged_at_step": record["diverged_at_step"],
        }
        for _, record in runs
    )
    rows[SCORES] = rows[SCORES].astype(float)
    grouped = rows.groupby(CASE)
    diverged = grouped["diverged_at_step"].agg(
        num_diverged="count", first_diverged_step="min", last_diverged_step="max"
    )
    return mean_and_std(grouped, SCORES).merge(diverged.reset_index(), on=CASE)


def confusion_table(runs: list[tuple[Path, dict[str, Any]]]) -> pd.DataFrame:
    """Test-set counts per case, target and prediction, of the first seed's run."""
    first = [(folder, record) for folder, record in runs if record["seed"] == 0]
    tables = [
        pd.read_csv(folder / CONFUSION).assign(**{name: record[name] for name in CASE})
        for folder, record in first
    ]
    rows = pd.concat(tables, ignore_index=True)
    return rows.loc[rows["split"] == "test", [*CASE, "target", "predicted", "count"]]


@click.command("three_cases")
@click.argument("runs", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--out", type=click.Path(path_type=Path), default=DATA / "three_cases", help="Folder of the tables."
)
def three_cases(runs: Path, out: Path) -> None:
    """Tables of the three-case study from its run folders."""
    found = read_runs(runs)
    records = [record for _, record in found]
    command = f"{experiment_command(runs)} && python -m analysis three_cases {runs}"
    tables = {"curves": curves_table(found), "final": final_table(found), "confusion": confusion_table(found)}
    for name, table in tables.items():
        write_committed_table(out / f"{name}.csv", table, command=command, records=records)
        click.echo(out / f"{name}.csv")
