"""How do bias, variance and the gain by bagging depend on the batch size? And do folds choose well?

Parts of the Brier score on the official test images; the models of a batch size share bootstrap
samples and initialisations with those of the others; orders are each batch size's own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.tables import Runs, analysis
from noisescale.statistics.estimate import Estimate, estimate_row, from_samples
from noisescale.statistics.scores.accuracy import accuracy_estimate
from noisescale.statistics.scores.bias_variance import BiasVariance, bias_variance as decompose
from noisescale.statistics.scores.cross_validation import choose_rate
from noisescale.statistics.scores.out_of_bag import out_of_bag

PREDICTIONS = "predictions.npz"
FACTORS = ("data", "initialisation", "order")
DRAWS = ["sample", "initialisation", "order"]  # what the runs call them
MODELS = (1, 2, 4, 8, 16, 32)  # of a bag


def decompositions(runs: Runs) -> dict[int, BiasVariance]:
    """The parts of the Brier score at each batch size."""
    found = {}
    for batch_size, group in _bootstrap(runs).groupby("batch_size"):
        ordered = group.sort_values(DRAWS)
        levels = [ordered[draw].nunique() for draw in DRAWS]
        stored = [_predictions(folder) for folder in ordered["folder"]]
        test = np.stack([each["test"] for each in stored])  # (runs, N, C)
        crossed = test.reshape(*levels, *test.shape[1:])
        found[int(str(batch_size))] = decompose(crossed, stored[0]["test_targets"], factors=FACTORS)
    return found


def parts_table(found: dict[int, BiasVariance]) -> pd.DataFrame:
    """A row per batch size and part of the score.

    difference: the part less that at the smallest batch size, paired over draws and examples.
    """
    smallest = found[min(found)]
    rows = []
    for batch_size, result in found.items():
        differences = smallest.difference(result) if result is not smallest else {}
        for part, estimate in result.estimates.items():
            row: dict[str, Any] = {"batch_size": batch_size, "part": part}
            row |= estimate_row("value", estimate)
            unknown = Estimate(value=np.nan, stderr=np.nan, low=np.nan, high=np.nan, num_samples=0)
            rows.append(row | estimate_row("difference", differences.get(part, unknown)))
    return pd.DataFrame(rows)


def bagging_table(found: dict[int, BiasVariance]) -> pd.DataFrame:
    """A row per batch size and number of models: their mean's score, and its gain over one."""
    rows = []
    for batch_size, result in found.items():
        for size in MODELS:
            row: dict[str, Any] = {"batch_size": batch_size, "models": size}
            row |= estimate_row("score", result.ensemble(size))
            rows.append(row | estimate_row("gain", result.bagging_gain(size)))
    return pd.DataFrame(rows)


def out_of_bag_table(runs: Runs) -> pd.DataFrame:
    """A row per batch size: out-of-bag scores of one model a sample, and their test scores.

    oob: as `out_of_bag` names them; test_ensemble: the Brier score of the mean of all models;
    accuracies of one model (test_single, the mean of them) and of the mean of all.
    """
    rows = []
    table = _bootstrap(runs)
    firsts = table[(table["initialisation"] == 0) & (table["order"] == 0)]
    for batch_size, group in firsts.groupby("batch_size"):
        stored = [_predictions(folder) for folder in group.sort_values("sample")["folder"]]
        pool, test, in_bag = (
            np.stack([each[name] for each in stored]) for name in ("pool", "test", "in_bag")
        )
        targets = stored[0]["test_targets"]
        oob = out_of_bag(pool, stored[0]["pool_targets"], in_bag)
        of_mean = np.square(test.mean(0) - np.eye(test.shape[2])[targets]).sum(1)
        correct = int((test.mean(0).argmax(1) == targets).sum())
        row: dict[str, Any] = {"batch_size": batch_size, "models": len(stored)}
        row |= estimate_row("oob_single", oob.single)
        row |= estimate_row("oob_ensemble", oob.ensemble(len(stored)))
        row |= estimate_row("test_ensemble", from_samples(of_mean))
        if oob.accuracy is not None:
            row |= estimate_row("oob_accuracy", oob.accuracy)
        row |= estimate_row("test_accuracy", accuracy_estimate(correct, len(targets)))
        row["test_single"] = float((test.argmax(2) == targets).mean())
        rows.append(row)
    return pd.DataFrame(rows)


def folds_table(records: pd.DataFrame) -> pd.DataFrame:
    """A row per batch size and rate: the error left out, over folds, and the test error.

    left_out: the mean over five folds with its standard error (1/(n − 1) over them). test: of
    models trained on the whole pool, the mean over seeds. largest_train_loss: of all these runs,
    above the goal where one has not come to it.
    """
    rows = []
    for (batch_size, factor), group in records.groupby(["batch_size", "factor"]):
        left_out = 1 - group.loc[group["fold"] >= 0, "left_out_accuracy"]
        whole = group[group["fold"] < 0]
        rows.append(
            {
                "batch_size": batch_size,
                "factor": factor,
                "learning_rate": group["learning_rate"].iloc[0],
                **estimate_row("left_out", from_samples(left_out.to_numpy())),
                **estimate_row("test", from_samples(1 - whole["test_accuracy"].to_numpy())),
                "largest_train_loss": group["train_loss"].max(),
                "num_diverged": int(group["diverged_at_step"].notna().sum()),
            }
        )
    return pd.DataFrame(rows)


def choices_table(records: pd.DataFrame, folds: pd.DataFrame) -> pd.DataFrame:
    """A row per batch size and rule: the rate that it chooses, and what that costs in test error.

    rule: "lowest" left-out error; "one standard error": the smallest rate whose left-out error is
    within that of the lowest, since runs that end at a loss fit less at a smaller one. excess: its
    test error less the lowest over rates, which is chosen with the test images, and so favoured.
    """
    left_out = records[records["fold"] >= 0].assign(error=1 - records["left_out_accuracy"])
    rows = []
    for batch_size, of_rates in folds.set_index("learning_rate").groupby("batch_size"):
        own = left_out[left_out["batch_size"] == batch_size]
        scores = own.pivot_table("error", "fold", "learning_rate", dropna=False)
        found = choose_rate(list(map(float, scores.columns)), scores.to_numpy(), prefer="smallest")
        for rule, rate in (("lowest", found.best), ("one standard error", found.chosen)):
            chosen = of_rates.loc[rate]
            rows.append(
                {
                    "batch_size": batch_size,
                    "rule": rule,
                    "learning_rate": rate,
                    "factor": chosen["factor"],
                    "left_out": chosen["left_out"],
                    "test": chosen["test"],
                    "excess": chosen["test"] - of_rates["test"].min(),
                }
            )
    return pd.DataFrame(rows)


def runs_table(runs: Runs) -> pd.DataFrame:
    """A row per batch size: how the runs on bootstrap samples ended.

    epochs: the mean. train_loss, largest_train_loss: on their own samples, the mean and the largest
    of the runs, which is above the goal where one has come to its last epoch before.
    """
    table = _bootstrap(runs).groupby("batch_size")
    losses = table["train_loss"].agg(["size", "mean", "max"])
    losses.columns = ["num_runs", "train_loss", "largest_train_loss"]
    return pd.DataFrame(losses.join(table["epochs"].mean()).reset_index())


def _bootstrap(runs: Runs) -> pd.DataFrame:
    """The runs on bootstrap samples, a row each with its folder."""
    return pd.DataFrame(
        {
            "folder": folder,
            **{name: record[name] for name in ("batch_size", *DRAWS, "epochs", "train_loss")},
        }
        for folder, record in runs
        if record["part"] == "bootstrap"
    )


def _predictions(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / PREDICTIONS) as stored:
        return dict(stored)


def tables(runs: Runs) -> dict[str, pd.DataFrame]:
    """Everything the figure is drawn from."""
    found = decompositions(runs)
    records = pd.DataFrame(record for _, record in runs if record["part"] == "folds")
    folds = folds_table(records)
    return {
        "runs": runs_table(runs),
        "parts": parts_table(found),
        "bagging": bagging_table(found),
        "out_of_bag": out_of_bag_table(runs),
        "folds": folds,
        "choices": choices_table(records, folds),
    }


bias_variance = analysis(
    "bias_variance",
    tables,
    help="Tables of bias and variance, bagging and folds from the experiment's runs.",
)
