"""How do B = 1024, 32 and 1 end, at raw and at unit pixels? Curves, scores, confusion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables import DATA, Runs, analysis
from noisescale.statistics.estimate import from_samples, student_t
from noisescale.training.records.tables import CONFUSION, LOSSES, read_metrics

CASE = ["pixel_scale", "batch_size"]
SPLITS = ("train", "test")
METRICS = ("loss", "accuracy", "f1")
PUBLISHED = "published.csv"
# of the published quantities those that ours are measured as; training scores were averaged while
# training there, of which ours have the loss
COMPARED = {
    "train_loss": "loss_while_training",
    "test_loss": "test_loss",
    "test_accuracy": "test_accuracy",
    "test_f1": "test_f1",
}


def curves_table(runs: Runs) -> pd.DataFrame:
    """A row per run and epoch: loss and accuracy on the test split."""
    rows = pd.concat(
        [
            pd.DataFrame(read_metrics(folder)).assign(
                **{name: record[name] for name in [*CASE, "seed"]}
            )
            for folder, record in runs
        ]
    )
    columns = [*CASE, "seed", "epoch", "loss", "accuracy"]
    return rows.loc[rows["split"] == "test", columns].sort_values(columns[:4])


def runs_table(runs: Runs) -> pd.DataFrame:
    """A row per run: its last scores, its loss while it trained, and where it diverged."""
    rows = [
        {
            **{name: record[name] for name in [*CASE, "seed", "steps"]},
            **{
                f"{split}_{metric}": record[split][metric] for split in SPLITS for metric in METRICS
            },
            "loss_while_training": _loss_while_training(folder),
            "diverged_at_step": record["diverged_at_step"],
        }
        for folder, record in runs
    ]
    return pd.DataFrame(rows).sort_values([*CASE, "seed"])


def _loss_while_training(folder: Path) -> float:
    """The mean loss of the last epoch's batches, each before its update, over their examples."""
    losses = pd.read_csv(folder / LOSSES)
    shares = np.diff(losses["epoch"], prepend=0.0)  # of an epoch that a row's batches were
    last = losses["epoch"] > losses["epoch"].iloc[-1] - 1
    return float(np.average(losses["loss"][last], weights=shares[last]))


def difference_table(ends: pd.DataFrame, published: pd.DataFrame) -> pd.DataFrame:
    """Ours less the published run, a row per batch size and quantity, over the seeds at raw pixels.

    The test images are the same, so that they add no error. `low` to `high` is Student's interval
    of the mean difference. A run more of ours would lie within `run_low` to `run_high` above the
    published value 95 % of the time, if runs are normal: where these hold zero, the published
    run, which is a single one, may be one of ours.
    """
    rows: list[dict[str, Any]] = []
    for _, row in published.iterrows():
        value = float(row["value"])
        ours = ends[ends["batch_size"] == row["batch_size"]]
        if row["quantity"] not in COMPARED or ours["diverged_at_step"].any() or ours.empty:
            continue
        mean = from_samples(ours[COMPARED[row["quantity"]]].to_numpy(np.float64) - value)
        reach = student_t(len(ours) - 1) * mean.stderr * np.sqrt(len(ours) + 1)
        rows.append(
            {
                "batch_size": row["batch_size"],
                "quantity": row["quantity"],
                "published": value,
                "difference": mean.value,
                "low": mean.low,
                "high": mean.high,
                "run_low": mean.value - reach,
                "run_high": mean.value + reach,
                "num_seeds": len(ours),
            }
        )
    return pd.DataFrame(rows)


def confusion_table(runs: Runs) -> pd.DataFrame:
    """Test-set counts per case, target and prediction, of the first seed's run."""
    first = [(folder, record) for folder, record in runs if record["seed"] == 0]
    tables = [
        pd.read_csv(folder / CONFUSION).assign(**{name: record[name] for name in CASE})
        for folder, record in first
    ]
    rows = pd.concat(tables, ignore_index=True)
    return rows.loc[rows["split"] == "test", [*CASE, "target", "predicted", "count"]]


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    ends = runs_table(runs)
    published = pd.read_csv(DATA / PUBLISHED, comment="#").query("figure == 'three_cases'")
    return {
        "curves": curves_table(runs),
        "runs": ends,
        "difference": difference_table(ends[ends["pixel_scale"] == "raw"], published),
        "confusion": confusion_table(runs),
    }


three_cases = analysis(
    "three_cases", tables, help="Tables of the three-case study from its run folders."
)
