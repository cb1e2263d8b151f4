"""How do B = 1024, 32 and 1 end, at raw and at unit pixels? Curves, scores, confusion."""

from __future__ import annotations

import pandas as pd

from analysis.tables import Runs, analysis, mean_and_std
from noisescale.training.records.tables import CONFUSION, read_metrics

CASE = ["pixel_scale", "batch_size"]
SCORES = ["train_loss", "train_accuracy", "test_loss", "test_accuracy", "test_f1", "seconds"]


def curves_table(runs: Runs) -> pd.DataFrame:
    """A row per case, epoch and split: loss, accuracy and F1, mean and deviation over seeds."""
    rows = pd.concat(
        [
            pd.DataFrame(read_metrics(folder)).assign(
                **{name: record[name] for name in [*CASE, "seed"]}
            )
            for folder, record in runs
        ]
    )
    grouped = rows.groupby([*CASE, "epoch", "split"])
    return mean_and_std(grouped, ["loss", "accuracy", "f1"])


def final_table(runs: Runs) -> pd.DataFrame:
    """A row per case: final scores, mean and deviation over seeds, and where runs diverged."""
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
    return {
        "curves": curves_table(runs),
        "final": final_table(runs),
        "confusion": confusion_table(runs),
    }


three_cases = analysis(
    "three_cases", tables, help="Tables of the three-case study from its run folders."
)
