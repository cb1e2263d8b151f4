"""The classes of the examples measured, each by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from noisescale.errors import SettingError
from noisescale.measure.gradients.engine import EngineName
from noisescale.measure.gradients.moments import GradientMoments, moments_on
from noisescale.measure.objective import Objective
from noisescale.problems.data.stream import Stream
from noisescale.problems.problem import Source
from noisescale.problems.sampling import Selection
from noisescale.statistics.gradient_noise import gradient_noise, table
from noisescale.statistics.sample import Sample, squared_deviations

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Classes:
    """What is measured of each class.

    Attributes:
        targets: the class of each example (n,).
        sizes: how many examples of each class the split has.
        moments: of the gradients, of each class that has two examples or more here.
    """

    targets: np.ndarray
    sizes: dict[int, int]
    moments: dict[int, GradientMoments]

    @property
    def left_out(self) -> list[int]:
        """The classes that have fewer than two examples here."""
        return sorted(self.sizes.keys() - self.moments.keys())

    def noise(self, sample: Sample) -> pd.DataFrame:
        """|G|², tr Σ and B_simple, a row per class, each its own population.

        Args:
            sample: all examples, of which population.
        """
        noises = {}
        for number, moments in self.moments.items():
            of_class = replace(
                sample,
                num_examples=moments.num_examples,
                population_size=self.sizes[number],
            )
            noises[number] = gradient_noise(
                moments.squared_norms.sum(1),
                moments.total_projections,
                float(moments.mean_squares.sum()),
                of_class,
                moments.whole_weighting,
            )
        return table("class", noises)

    def deviations(self) -> np.ndarray:
        """|g_i − ḡ_c|² (n,), from the mean of an example's own class; zero where it is alone."""
        found = np.zeros(len(self.targets))
        for number, moments in self.moments.items():
            projections = moments.total_projections
            assert projections is not None, "measured with standard errors"
            found[self.targets == number] = squared_deviations(
                moments.squared_norms.sum(1), projections, float(moments.mean_squares.sum())
            )
        return found


def measure_classes(
    objective: Objective,
    selected: Selection,
    whole_split: Callable[[], Source],
    *,
    engine: EngineName,
    report: Callable[[str], None],
) -> Classes | None:
    """The moments of each class of the targets; None where these are no classes.

    Args:
        objective: of the examples selected.
        selected: the examples, and which of the split's they are.
        whole_split: all examples that they were chosen from.
        engine: what computes gradients.
        report: is told which class is being measured.
    """
    targets = classes_of(selected.examples)
    if targets is None:
        return None
    of_split = targets
    if len(targets) < selected.population_size:
        every = classes_of(whole_split())
        assert every is not None, "those of a part are classes"
        of_split = every
    values, counts = of_split.unique(return_counts=True)
    sizes = dict(zip(values.tolist(), counts.tolist(), strict=True))
    moments = {}
    for number in sorted(sizes):
        rows = (targets == number).nonzero().squeeze(1)
        of_class = selected.examples.subset(rows)
        if len(rows) < 2 or not objective.has_weight(of_class):
            continue
        report(f"class {number}")
        moments[number] = moments_on(
            objective.on(of_class),
            indices=selected.indices[rows.cpu()],
            population_size=sizes[number],
            engine=engine,
        )
    return Classes(targets.cpu().numpy(), sizes, moments)


def check_classes(classes: Classes | None) -> Classes:
    """The classes; SettingError where the targets are none."""
    if classes is None:
        raise SettingError(
            "per class: the targets are no classes, one whole number for each example"
        )
    return classes


def classes_of(examples: Source) -> Tensor | None:
    """The classes (n,), of a Dataset read for it; None where the targets are none.

    Args:
        examples: whose targets they are.
    """
    first = examples.part(slice(1)).targets
    is_column = isinstance(first, Tensor) and first.ndim == 1
    if not is_column or first.is_floating_point() or first.is_complex():
        return None
    targets: Tensor = (
        examples.targets() if isinstance(examples, Stream) else examples.part(slice(None)).targets
    )
    return targets
