"""The straight line between two models of one problem: loss and accuracy along it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from noisescale.errors import MeasurementError, SettingError, check_choice
from noisescale.problems.models import copy_of, has_batch_norm
from noisescale.problems.problem import SPLITS, Params, Problem, held, source_of
from noisescale.problems.sampling import select
from noisescale.statistics.display import Shown, Summary, counted
from noisescale.statistics.estimate import Estimate, from_samples, jsonable, undefined
from noisescale.statistics.scores.accuracy import accuracy_estimate
from noisescale.statistics.scores.barrier import Barrier, line_barrier
from noisescale.training.evaluation import ExampleScores, renew_batch_statistics, score_examples
from noisescale.training.records.checkpoint import Checkpoint
from noisescale.training.records.weights import apply_weights

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

Buffers = Literal["recompute", "interpolate"]
Report = Callable[[str], None]

LOW, HIGH, POINTS = -0.5, 1.5, 41  # as in Keskar et al. 2017, figure 3, and Goodfellow et al. 2015


@dataclass(frozen=True, kw_only=True)
class LineOfSplit:
    """What `interpolate` finds on one split.

    Attributes:
        num_examples: that the scores are of.
        losses: the mean loss at each α, with the error of the examples; nan where not finite.
        accuracies: at each α, with Wilson's interval; empty where the outputs are no classes.
        barrier: the largest loss above the chord between α = 0 and 1, and its α, see
            `line_barrier`.
        accuracy_drop: the largest fall of the accuracy below its chord, and its α; None without
            classes.
    """

    num_examples: int
    losses: tuple[Estimate, ...]
    accuracies: tuple[Estimate, ...]
    barrier: Barrier
    accuracy_drop: Barrier | None


@dataclass(frozen=True, kw_only=True, repr=False)
class Interpolation(Shown):
    """Loss and accuracy of (1 − α)·first + α·second, what `interpolate` gives.

    Attributes:
        alphas: α of each point.
        splits: what was found on each split, by its name.
        distance: |second − first|, of the parameters.
        buffers: how batch norm's running statistics were had: "recompute" or "interpolate"; None
            where the model has no batch norm.
        notes: sentences that a reader should know.
    """

    alphas: tuple[float, ...]
    splits: dict[str, LineOfSplit]
    distance: float
    buffers: Buffers | None
    notes: tuple[str, ...] = ()

    def to_frame(self) -> pd.DataFrame:
        """A row for each split and α: loss and accuracy with stderr, low and high."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of `to_frame`."""
        return [
            {
                "split": split,
                "alpha": alpha,
                **_columns("loss", line.losses[place]),
                **(_columns("accuracy", line.accuracies[place]) if line.accuracies else {}),
            }
            for split, line in self.splits.items()
            for place, alpha in enumerate(self.alphas)
        ]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for strict JSON."""
        record: dict[str, Any] = jsonable(
            {
                "distance": self.distance,
                "buffers": self.buffers,
                "barriers": {
                    split: {
                        "num_examples": line.num_examples,
                        "height": line.barrier.height,
                        "alpha": line.barrier.alpha,
                        "accuracy_drop": line.accuracy_drop and line.accuracy_drop.height,
                        "accuracy_alpha": line.accuracy_drop and line.accuracy_drop.alpha,
                    }
                    for split, line in self.splits.items()
                },
                "points": self.rows,
                "notes": self.notes,
            }
        )
        return record

    def plot(self, axes: Axes | None = None) -> Axes:
        """Draws the loss of each split along the line.

        Args:
            axes: to draw on; None: new ones.

        Returns:
            The Axes.
        """
        from noisescale.plots.interpolation import plot_line
        from noisescale.plots.style import axes_or_new

        axes = axes_or_new(axes)
        plot_line(axes, self.to_frame(), "loss")
        return axes

    def place(self, alpha: float) -> int:
        """Which point of the grid is nearest to α.

        Args:
            alpha: α.
        """
        return int(np.abs(np.array(self.alphas) - alpha).argmin())

    def _summary(self) -> Summary:
        return Summary(
            title=f"Line of {counted(len(self.alphas), 'point')} between two models "
            f"{self.distance:.4g} apart",
            headings=("split", "loss at 0", "at 1", "barrier", "at α"),
            rows=[
                (
                    split,
                    *(f"{line.losses[self.place(end)].value:.4g}" for end in (0, 1)),
                    str(line.barrier.height),
                    f"{line.barrier.alpha:.3g}",
                )
                for split, line in self.splits.items()
            ],
            notes=self.notes,
        )


def interpolate(
    problem: Problem,
    first: Checkpoint | Params,
    second: Checkpoint | Params,
    *,
    alphas: Sequence[float] | None = None,
    splits: Sequence[str] = ("train", "test"),
    num_examples: int | None = None,
    buffers: Buffers = "recompute",
    seed: int = 0,
    report: Report | None = None,
) -> Interpolation:
    """Loss and accuracy along the straight line between two sets of parameters.

    At (1 − α)·first + α·second, computed in float64 and rounded to the model's dtype, in evaluation
    mode, as Goodfellow, Vinyals and Saxe 2015 (arXiv 1412.6544) and Keskar et al. 2017 (arXiv
    1609.04836, figure 3). The barrier of a split is the largest L(α) − (1 − α)L(0) − αL(1) between
    the ends. No permutation of units is sought that would lower it.

    Args:
        problem: the model, loss and data of both; its model is left as it is.
        first: the model at α = 0: a Checkpoint, or parameters and buffers by name.
        second: the model at α = 1.
        alphas: α, with 0, 1 and one at least between; None: 41 from −.5 to 1.5.
        splits: on which; one that the problem does not have is left out.
        num_examples: a random subset of each split, the same at every α; None: all.
        buffers: what batch norm normalises by between the ends, and at them. "recompute": the
            statistics of these weights on all training examples, as averaged or interpolated
            weights need (Izmailov et al. 2018, arXiv 1803.05407, section 3.2). "interpolate": the
            running ones, which weigh like parameters. Other buffers are interpolated where they
            are real numbers, and the first's otherwise.
        seed: of the subset.
        report: is told what is being done.

    Returns:
        Losses, accuracies and the barrier of each split, with errors.

    Raises:
        SettingError: α that leave out 0 or 1, no such split, or another bad argument.
        CheckpointError: parameters that do not fit the model.
        MeasurementError: parameters that are not finite.

    Examples:
        >>> from noisescale import ProblemConfig, TrainConfig, build_problem, interpolate, train
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> ends = []
        >>> for seed in (0, 1):
        ...     config = TrainConfig(batch_size=32, learning_rate=0.1, epochs=5, seed=seed)
        ...     *_, last = train(problem, config)
        ...     ends.append(last)
        >>> line = interpolate(problem, *ends, alphas=(0, 0.5, 1))
        >>> line.splits["test"].barrier.alpha
        0.5
    """
    grid = _checked_alphas(alphas)
    check_choice("buffers", buffers, get_args(Buffers))
    chosen = _sources(problem, splits, num_examples, seed)
    report = report or (lambda activity: None)
    model = copy_of(problem.model)
    states = [_state(model, each, name) for each, name in ((first, "first"), (second, "second"))]
    normalised = has_batch_norm(model)
    training = held(source_of(problem.train)) if normalised and buffers == "recompute" else None
    scores: dict[str, list[ExampleScores]] = {split: [] for split in chosen}
    for number, alpha in enumerate(grid, start=1):
        report(f"point {number} of {len(grid)}")
        _set(model, states, alpha)
        if training is not None:
            renew_batch_statistics(model, training)
        for split, examples in chosen.items():
            score = score_examples(model, problem.loss, examples, problem.weights)
            scores[split].append(score)
    notes = []
    if normalised:
        notes.append(
            "batch norm's running statistics are those of each point's weights on the training "
            "examples, at the ends too"
            if buffers == "recompute"
            else "batch norm's running statistics are interpolated"
        )
    return Interpolation(
        alphas=tuple(map(float, grid)),
        splits={split: _line(of_split, grid) for split, of_split in scores.items()},
        distance=_distance(model, states),
        buffers=buffers if normalised else None,
        notes=tuple(notes),
    )


def _checked_alphas(alphas: Sequence[float] | None) -> np.ndarray:
    """α in rising order; SettingError unless 0, 1 and a point between are among them."""
    if alphas is None:
        return np.linspace(LOW, HIGH, POINTS).round(10)
    grid = np.unique(np.asarray(alphas, dtype=np.float64))
    ends = all(np.isclose(grid, end).any() for end in (0, 1))
    if not np.isfinite(grid).all() or not ends or not ((grid > 0) & (grid < 1)).any():
        shown = ", ".join(f"{alpha:g}" for alpha in grid[:8])
        raise SettingError(
            f"alphas {shown}{', …' if len(grid) > 8 else ''}: give finite numbers with 0, 1 and "
            "one at least between them, from which a barrier is measured"
        )
    return grid


def _sources(
    problem: Problem, splits: Sequence[str], num_examples: int | None, seed: int
) -> dict[str, Any]:
    """The examples of each split, in memory; those that the problem does not have left out."""
    for split in splits:
        check_choice("split", split, SPLITS)
    there = [split for split in splits if getattr(problem, split) is not None]
    if not there:
        raise SettingError(f"splits {', '.join(splits) or 'none'}: the problem has none of these")
    return {
        split: held(
            select(
                problem,
                split=split,
                num_examples=num_examples,
                generator=torch.Generator().manual_seed(seed),
            )[0]
        )
        for split in there
    }


def _state(model: nn.Module, content: Checkpoint | Params, name: str) -> dict[str, Tensor]:
    """The parameters and buffers that the model has with these weights, copies."""
    params = content.params if isinstance(content, Checkpoint) else content
    if broken := [name for name, value in params.items() if not value.isfinite().all()]:
        raise MeasurementError(
            f"the {name} model's {', '.join(broken[:4])} are not finite: its run had diverged; "
            "give an earlier checkpoint"
        )
    apply_weights(model, content, path=Path(f"the {name} model"))
    return {name: value.clone() for name, value in _tensors(model).items()}


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """All of a model's parameters and buffers, each once."""
    return {
        **{name: param.detach() for name, param in model.named_parameters()},
        **dict(model.named_buffers()),
    }


@torch.no_grad()
def _set(model: nn.Module, states: list[dict[str, Tensor]], alpha: float) -> None:
    """Puts the model at α; what is no number with a point stays the first's."""
    first, second = states
    for name, tensor in _tensors(model).items():
        start, end = first[name], second[name]
        if tensor.is_floating_point() or tensor.is_complex():
            wide = torch.complex128 if tensor.is_complex() else torch.float64
            tensor.copy_((1 - alpha) * start.to(wide) + alpha * end.to(wide))
        else:
            tensor.copy_(start)


def _distance(model: nn.Module, states: list[dict[str, Tensor]]) -> float:
    """|second − first|, of the parameters."""
    first, second = states
    squares = (
        (second[name] - first[name]).abs().double().square().sum()
        for name, _ in model.named_parameters()
    )
    return math.sqrt(float(torch.stack([square.cpu() for square in squares]).sum()))


def _line(scores: list[ExampleScores], alphas: np.ndarray) -> LineOfSplit:
    """What is found on a split from every example's scores at every α."""
    losses = np.stack([score.losses for score in scores])  # (K, N)
    counts = scores[0].counts
    classified = [score.correct for score in scores if score.correct is not None]
    wrong = 1.0 - np.stack(classified) if len(classified) == len(scores) else None  # (K, N)
    return LineOfSplit(
        num_examples=losses.shape[1],
        losses=tuple(_mean(of_point, counts) for of_point in losses),
        accuracies=tuple(
            accuracy_estimate(int(correct.sum()), len(correct)) for correct in classified
        )
        if wrong is not None
        else (),
        barrier=line_barrier(losses, alphas, weights=counts),
        accuracy_drop=None if wrong is None else line_barrier(wrong, alphas),
    )


def _mean(losses: np.ndarray, counts: np.ndarray | None) -> Estimate:
    """The mean loss of single ones (N,), by their weights; undefined where it is not finite."""
    if not np.isfinite(losses).all():
        return undefined(num_samples=len(losses))
    if counts is None:
        return from_samples(losses)
    mean = np.average(losses, weights=counts)
    return from_samples(mean + counts / counts.mean() * (losses - mean))


def _columns(name: str, estimate: Estimate) -> dict[str, float]:
    return {
        name: estimate.value,
        f"{name}_stderr": estimate.stderr,
        f"{name}_low": estimate.low,
        f"{name}_high": estimate.high,
    }
