"""Who carries the gradient noise, on stdout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from noisescale.cli.printing.tables import NumberTable, Screen, or_dash, plain_table
from noisescale.errors import SettingError
from noisescale.statistics.estimate import Estimate, estimate_of
from noisescale.statistics.gradient_noise import NoiseAnatomy

INTERVAL = "95 % interval"
LESS = ("n_eff", "between classes", "misclassified")
PARTS = ("squared_gradient_norm", "gradient_variance")


class OfCheckpoint(NamedTuple):
    """The anatomy at a checkpoint, and what that is called."""

    name: str
    anatomy: NoiseAnatomy


def print_anatomy(measured: Sequence[OfCheckpoint], console: Screen) -> None:
    """A table of the parts of tr Σ, of several checkpoints a row each, and the last one's parts."""
    if not measured:
        return
    last = measured[-1].anatomy
    console.print(_parts(last) if len(measured) == 1 else _along_training(measured))
    if last.per_class is not None:
        console.print(_shares("class", last.per_class, "share of examples", "examples"))
    console.print(_shares("parameter", last.per_layer, "share of |G|²", "signal"))
    if last.components is not None:
        console.print(_components(last))


def _parts(anatomy: NoiseAnatomy) -> NumberTable:
    """One checkpoint: a row for each part of tr Σ."""
    table = plain_table("who carries tr Σ", "share", INTERVAL, words=("who carries tr Σ",))
    for part in anatomy.named_shares:
        table.add_row(f"noisiest {100 * part:g} %", _share(anatomy.variance_share(part)), "")
    if anatomy.misclassified is not None:
        wrong = anatomy.misclassified
        table.add_row(f"misclassified, {_share(wrong.examples)}", _share(wrong.variance), "")
    if anatomy.between_classes is not None:
        table.add_row("differences between classes", *_with_interval(anatomy.between_classes))
    table.add_row("importance sampling would leave", *_with_interval(anatomy.importance))
    value, _, interval = anatomy.importance_simple.cells()
    table.add_row("B_simple under it, in examples", value, interval)
    return table


def _along_training(measured: Sequence[OfCheckpoint]) -> NumberTable:
    """Several checkpoints: a row each, and how many of the noisiest were so at the one before."""
    table = plain_table(
        *("checkpoint", "noisiest 1 %", "same as before", "n_eff", "misclassified"),
        *("between classes", "importance leaves", "B_simple under it"),
        words=("checkpoint",),
        less=LESS,
    )
    before: NoiseAnatomy | None = None
    for name, anatomy in measured:
        wrong, between = anatomy.misclassified, anatomy.between_classes
        table.add_row(
            name,
            _share(anatomy.variance_share(0.01)),
            _same(anatomy, before),
            f"{anatomy.effective_examples:,.3g}",
            "" if wrong is None else _share(wrong.variance),
            "" if between is None else _with_interval(between)[0],
            _with_interval(anatomy.importance)[0],
            anatomy.importance_simple.text("value"),
        )
        before = anatomy
    return table


def _same(anatomy: NoiseAnatomy, before: NoiseAnatomy | None) -> str:
    """How many of the noisiest were among them before; empty where that is not known."""
    if before is None:
        return ""
    try:
        return _share(anatomy.overlap(before))
    except SettingError:  # of other examples, as of runs on different data
        return ""


def _shares(key: str, rows: object, heading: str, column: str) -> NumberTable:
    """A row for each class or tensor: its share of something, and of tr Σ."""
    import pandas as pd

    assert isinstance(rows, pd.DataFrame)
    table = plain_table(key, heading, "share of tr Σ", words=(key,))
    for row in rows.to_dict("records"):
        table.add_row(str(row[key]), _share(row[column]), _share(row["variance"]))
    return table


def _components(anatomy: NoiseAnatomy) -> NumberTable:
    """A row for each group of principal components of what the first layer is given."""
    key = "components"
    table = plain_table(
        *(key, "of inputs", "|G|²", "tr Σ", "B_simple", INTERVAL),
        words=(key,),
        less=("of inputs", "|G|²", "tr Σ"),
        title="The first linear layer along the principal components of its inputs",
    )
    assert anatomy.components is not None
    for row in anatomy.components.to_dict("records"):
        value, _, interval = estimate_of(row, "simple", num_samples=anatomy.num_examples).cells()
        first, last = row["first"], row["last"]
        table.add_row(
            f"{first:,}" if first == last else f"{first:,}–{last:,}",
            _share(row["input_variance"]),
            *(estimate_of(row, name).text("value") for name in PARTS),
            value,
            interval,
        )
    return table


def _with_interval(share: Estimate) -> tuple[str, str]:
    """A share with its interval, in per cent."""
    value, _, interval = share.scaled(100).cells()
    return f"{value} %", interval


def _share(value: float) -> str:
    """Such as "12.3 %"; a dash where there is none."""
    return or_dash(value, lambda share: f"{100 * share:.3g} %")
