"""Batch sizes for a run like one along which the noise scale has been tracked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from noisescale.errors import MeasurementError, NoProgressError, SettingError, check_count
from noisescale.statistics.critical_batch.calibration.model import (
    Scale,
    relative_decrease,
)
from noisescale.statistics.critical_batch.calibration.shipped import (
    Geometry,
    OptimizerKind,
    RunFacts,
    covers_preconditioned,
    critical_batch_size,
    outside,
)
from noisescale.statistics.critical_batch.curves.steps_vs_examples import Tradeoff
from noisescale.statistics.critical_batch.progress import (
    course_of,
    inverse_of,
    is_resolved,
    is_under_preconditioner,
    parts_of,
    share_covered,
    share_of_negative_curvature,
    with_preconditioned,
)
from noisescale.statistics.display import Shown, Summary
from noisescale.statistics.estimate import Estimate, jsonable
from noisescale.statistics.gradient_noise import (
    UNDER_PRECONDITIONER,
    NoiseScale,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# batch size in units of B_crit: steps or examples at 1.1 times their least, or both at twice it
AIMS = {"fewest examples": 0.1, "balanced": 1.0, "fewest steps": 10.0}
LEAST_COVERED = 0.75  # of the run's steps, for B_noise to be given: what is left out is then little
FAR = 3.0  # times the best rate, or a third of it: there 𝓑 and B_crit part by more than their error
NEEDED = ("step", "batch_size", "num_examples", "population_size", "simple", "full")
SIZE_HEADINGS = ("aim", "batch size", "steps S/S_min", "examples E/E_min")


@dataclass(frozen=True, kw_only=True, repr=False)
class Recommendation(Shown):
    """What the noise scale 𝓑 along a run says about the batch size of another like it.

    Attributes:
        quantity: "simple", B_simple, from which B_crit follows with the smaller error, or "full",
            B_noise.
        covered: the share of the run's steps in stretches at both of whose ends it is resolved.
        course: the steps and examples that the run's course takes, each stretch between
            measurements at the batch size with which it began and at the mean 1/𝓑 of its ends.
        low: the same from the lower ends of all intervals, as if the errors were one: they are of
            the same examples. Interpolation adds no error here.
        high: the same from the upper ends; None where they leave no progress at all.
        start: 𝓑 at the first resolved measurement.
        end: 𝓑 at the last one.
        average: its mean over the steps between, across what is not resolved by a straight line.
        population_size: the training examples, which no batch can exceed.
        num_measurements: along the run.
        num_unresolved: of these.
        relative_decrease: the share of the loss that the first step's gradient promises to take,
            see `calibration.model`; None where it is not known. No shipped answer goes by it.
        rate_over_best: the run's rate over the best one that a search has found; None: no search.
        negative_curvature: the share of the steps that begin where GᵀHG lies significantly below
            zero; None where it was not measured.
        full_by_progress: beside B_simple, B_noise averaged by progress, where it was tracked and is
            resolved along most of the run; else None.
        geometry: "plain", or "optimizer" for the noise scales under its preconditioner.
        batch_size_of_run: the geometric mean over the measurements.
        relative_loss: the loss at the last measurement over that at the run's start; None where the
            table does not begin there, or either is not above zero.
        optimizer: of which kind the run's is; None: not known.
    """

    quantity: Scale
    covered: float
    course: Tradeoff
    low: Tradeoff
    high: Tradeoff | None
    start: Estimate
    end: Estimate
    average: Estimate
    population_size: int
    num_measurements: int
    num_unresolved: int
    relative_decrease: float | None = None
    rate_over_best: float | None = None
    negative_curvature: float | None = None
    full_by_progress: Estimate | None = None
    geometry: Geometry = "plain"
    batch_size_of_run: float | None = None
    relative_loss: float | None = None
    optimizer: OptimizerKind | None = None

    @property
    def column(self) -> str:
        """That of 𝓑 in noise.csv."""
        return self.column_of(self.quantity)

    def column_of(self, quantity: Scale) -> str:
        """A noise scale's column in noise.csv, in the geometry of this one.

        Args:
            quantity: "simple" or "full".
        """
        return quantity if self.geometry == "plain" else f"{UNDER_PRECONDITIONER}{quantity}"

    @property
    def by_progress(self) -> Estimate:
        """𝓑 averaged by the progress made at it, E_min/S_min, with its error of measurement."""
        # a quarter of the interval, not of its logarithm: both ends are means, which add
        return Estimate.from_interval(
            self.course.critical_batch_size,
            self.low.critical_batch_size,
            math.inf if self.high is None else self.high.critical_batch_size,
            num_samples=self.average.num_samples,
            scale="linear",
        )

    @property
    def critical_batch_size(self) -> Estimate:
        """B_crit of another run like it, its interval that of the calibration: for a new run."""
        return critical_batch_size(
            self.by_progress, self.facts, quantity=self.quantity, geometry=self.geometry
        )

    @property
    def facts(self) -> RunFacts:
        """What the run tells beside its noise scale, of which B_crit depends as well."""
        return RunFacts(
            batch_size=self.batch_size_of_run,
            rate_over_best=self.rate_over_best,
            relative_decrease=self.relative_decrease,
            negative_curvature=self.negative_curvature,
            relative_loss=self.relative_loss,
            optimizer=self.optimizer,
        )

    @property
    def relative_rate(self) -> float | None:
        """The run's rate over the best for its batch size; None where no search has found that."""
        return self.rate_over_best

    @property
    def warnings(self) -> tuple[str, ...]:
        """What keeps the noise scale of this run from being B_crit of a tuned one."""
        rate, made = self.relative_rate, []
        if rate is None:
            made.append(
                "how the run's learning rate compares with the best one is not known, as it is "
                "after a search (noisescale recommend), so the interval is wider"
            )
        elif not 1 / FAR <= rate <= FAR:
            made.append(
                f"the learning rate is about {rate:.2g} times the best one for this batch size, "
                "and the noise scale depends on it: track a run nearer to the best rate"
            )
        if beyond := outside(
            self.by_progress.value, self.facts, quantity=self.quantity, geometry=self.geometry
        ):
            made.append(
                f"{', '.join(beyond)} of this run lies beyond the runs that the interval is "
                "calibrated on, and counts as at their end"
            )
        if self.geometry == "optimizer" and not covers_preconditioned():
            made.append(
                "the noise scale is that of the optimizer's geometry, the interval that of runs of "
                "plain SGD"
            )
        if self.negative_curvature:
            made.append(
                f"GᵀHG is negative over {100 * self.negative_curvature:.0f} % of the steps, where "
                "there is no B_noise"
            )
        return tuple(made)

    def batch_size(self, aim: str) -> int:
        """The batch size for an aim: a tenth of B_crit, B_crit, or ten times it.

        They take 1.1, 2 and 11 times the fewest examples, and 11, 2 and 1.1 times the fewest steps.

        Args:
            aim: "fewest examples", "balanced" or "fewest steps".

        Returns:
            Examples per update, two significant digits, at most all training examples.
        """
        value = self.critical_batch_size.value
        return size_for(aim, value, largest=self.population_size) or self.population_size

    @property
    def sizes(self) -> list[dict[str, Any]]:
        """For each aim its batch size with its ends, and the S/S_min and E/E_min that it takes."""
        interval = self.critical_batch_size
        critical = interval.value
        return [
            {
                "aim": aim,
                "batch_size": self.batch_size(aim),
                "low": size_for(aim, interval.low, largest=self.population_size),
                "high": size_for(aim, interval.high, largest=self.population_size),
                "steps": 1 + critical / self.batch_size(aim),
                "examples": 1 + self.batch_size(aim) / critical,
            }
            for aim in AIMS
        ]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draws what a batch size costs in steps and in examples, and the size for each aim.

        Costs are in units of the least ones, as bands where B_crit has an interval.

        Args:
            ax: drawn on, both axes made logarithmic; None: new ones, in a figure of pyplot's.

        Returns:
            The Axes.
        """
        from noisescale.plots.critical_batch import draw_recommendation  # loads matplotlib

        return draw_recommendation(self.sizes, self.critical_batch_size.to_dict(), ax)

    def to_dict(self) -> dict[str, Any]:
        """For strict JSON: the key `recommendation` of `noisescale measure-noise --json`."""
        critical = self.critical_batch_size
        record: dict[str, Any] = {
            "from": self.quantity,
            "geometry": self.geometry,
            "covered": self.covered,
            "start": self.start,
            "average": self.average,
            "by_progress": self.by_progress,
            "full_by_progress": self.full_by_progress,
            "end": self.end,
            "num_measurements": self.num_measurements,
            "num_unresolved": self.num_unresolved,
            "min_steps": self.course.min_steps,
            "min_examples": self.course.min_examples,
            "relative_rate": self.relative_rate,
            "negative_curvature": self.negative_curvature,
            "critical_batch_size": {
                "value": critical.value,
                "low": critical.low,
                "high": critical.high,
            },
            "gain": self.course.gain,
            "sizes": self.sizes,
            "warnings": list(self.warnings),
        }
        stored: dict[str, Any] = jsonable(record)
        return stored

    def to_frame(self) -> pd.DataFrame:
        """A row for each aim: its batch size, and the steps S/S_min and examples E/E_min."""
        return pd.DataFrame(self.sizes)

    def _summary(self) -> Summary:
        critical = self.critical_batch_size
        return Summary(
            title=f"Batch sizes for another run like it: B_crit ≈ {critical.text()}, by "
            f"{self.num_measurements} measurements",
            headings=SIZE_HEADINGS,
            rows=[size_cells(row) for row in self.sizes],
            notes=self.warnings,
            notes_at=".warnings",
            numeric=True,
        )


def size_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of `sizes` under `SIZE_HEADINGS`."""
    ratios = (f"{row[name]:.1f}" for name in ("steps", "examples"))
    return (str(row["aim"]), f"{row['batch_size']:,}", *ratios)


def size_for(aim: str, critical: float, *, largest: float = math.inf) -> int | None:
    """The batch size for an aim where B_crit is this, in two digits; None where nothing bounds it.

    Args:
        aim: one of AIMS.
        critical: B_crit, or an end of its interval.
        largest: that a batch can be.
    """
    size = AIMS[aim] * critical
    if not size < largest:
        return None if math.isinf(largest) else int(largest)
    return int(min(max(1, round(float(f"{size:.2g}"))), largest))


def recommend(
    measured: pd.DataFrame | Sequence[NoiseScale],
    *,
    quantity: Scale | None = None,
    learning_rate: float | None = None,
    rate_over_best: float | None = None,
    steps: Sequence[int] | None = None,
    batch_size: int | None = None,
    geometry: Geometry | None = None,
    optimizer: OptimizerKind | None = None,
) -> Recommendation:
    """The recommendation from the rows of a run's noise.csv, or from noise scales along a run.

    𝓑 is averaged by progress as 1/𝓑, of which noise in |G|² or GᵀHG makes no outliers, and which
    takes in measurements that do not resolve 𝓑: leaving those out, as the ones where the noise is
    largest, makes the average too small by up to a half. Only where GᵀHG lies significantly below
    zero is B_noise not defined at all; across that the mean of the ends stands.

    Args:
        measured: the rows, by ascending step; or what `measure_noise` gave at points along a run,
            two or more, in their order.
        quantity: which noise scale to take; None: "simple", and B_noise beside it. Over runs at
            many rates, what B_simple says of B_crit is off by a factor of e^0.4 or so, what B_noise
            says by e: far below the best rate GᵀHG is small and B_noise large without bound.
        learning_rate: ε of the run, where it was constant, of SGD without momentum, for
            `relative_decrease`; None: not known.
        rate_over_best: the run's rate over the best one that a search has found, 1 where it is that
            one; of SGD, with momentum or without. None: not known.
        steps: of a list: the updates after which each was measured; None: at equal distances, which
            leaves out how the run's rate compares with the best.
        batch_size: of a list: that of the run.
        geometry: "plain" for B_simple and B_noise, "optimizer" for B^P_simple and B^P_noise, which
            are not known before the optimizer's first step. None: the plain ones, whose
            calibration has runs of Adam among its own; the optimizer's where they alone were
            measured.
        optimizer: of which kind the run's is: "sgd", "momentum" or "adaptive", as of Adam; None:
            not known.

    Returns:
        The recommendation.

    Raises:
        MeasurementError: fewer than two rows have a noise scale, no two neighbours do, or their
            steps do not increase.
        SettingError: what is given is neither such a table nor such a list, or a list comes without
            its batch size.

    Examples:
        >>> import pandas as pd
        >>> from noisescale import ProblemConfig, build_problem, measure_noise, recommend
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> rows = measure_noise(problem).to_frame()  # of each checkpoint, with its step
        >>> table = pd.concat([rows.assign(step=step, batch_size=32) for step in (0, 100)])
        >>> recommend(table).batch_size("balanced")
        32
    """
    table = _table(measured, steps=steps, batch_size=batch_size)
    relative_loss = _relative_loss(table)  # before rows without a preconditioner are left out
    if relative_loss is not None and relative_loss > 1:
        raise NoProgressError(
            f"the loss at the end is {relative_loss:.3g} times that at the start: of a run that "
            "makes no progress the noise scale says nothing; track one that trains, as at a lower "
            "learning rate"
        )
    if geometry is None:
        geometry = _geometry_of(table)
    if geometry == "optimizer":
        table = with_preconditioned(table)
    at_steps = table["step"].to_numpy(dtype=float)
    if (np.diff(at_steps) <= 0).any() or (table["batch_size"] < 1).any():
        raise MeasurementError(
            "the table's steps do not increase, or a batch size in it is below 1"
        )
    full = None
    if quantity is None:
        quantity = "simple"
        if share_covered(table, "full") >= LEAST_COVERED:
            full = recommend(table, quantity="full", geometry="plain").by_progress
    rows, covered = table[is_resolved(table, quantity)], share_covered(table, quantity)
    if len(rows) < 2 or covered == 0:
        few = f"{len(rows)} of {len(table)} measurements along the run have a noise scale"
        raise MeasurementError(
            f"{few}, and it takes 2 neighbours: track it on more examples (--noise-examples)"
        )
    columns = parts_of(rows, quantity)
    num_samples = int(rows["num_examples"].iloc[0])

    def estimate(index: int) -> Estimate:
        parts = {part: float(column[index]) for part, column in columns.items()}
        return Estimate(**parts, num_samples=num_samples)

    resolved_at = rows["step"].to_numpy(dtype=float)
    means = {
        part: float(np.trapezoid(column, resolved_at) / (resolved_at[-1] - resolved_at[0]))
        for part, column in columns.items()
    }
    inverse = inverse_of(table, quantity)
    high = course_of(table, inverse["low"])  # of 𝓑, from the lower ends of 1/𝓑
    decrease = None
    has_steps = steps is not None or isinstance(measured, pd.DataFrame)
    is_plain = geometry == "plain" and optimizer in ("sgd", None)
    if learning_rate is not None and has_steps and is_plain:
        decrease = relative_decrease(table, learning_rate=learning_rate)
    return Recommendation(
        quantity=quantity,
        covered=covered,
        course=course_of(table, inverse["value"]),
        low=course_of(table, inverse["high"]),
        high=high if high.min_steps > 0 else None,
        start=estimate(0),
        end=estimate(-1),
        average=Estimate(**means, num_samples=num_samples),
        population_size=int(table["population_size"].max()),
        num_measurements=len(table),
        num_unresolved=len(table) - len(rows),
        relative_decrease=decrease,
        rate_over_best=rate_over_best,
        negative_curvature=share_of_negative_curvature(table),
        full_by_progress=full,
        geometry=geometry,
        batch_size_of_run=float(np.exp(np.log(table["batch_size"].to_numpy(dtype=float)).mean())),
        relative_loss=relative_loss,
        optimizer=optimizer,
    )


def _geometry_of(table: pd.DataFrame) -> Geometry:
    """In which geometry B_crit is told: the optimizer's where its noise alone was measured."""
    has_plain = table["simple"].notna().sum() >= 2
    return "plain" if has_plain or not is_under_preconditioner(table).any() else "optimizer"


def _relative_loss(table: pd.DataFrame) -> float | None:
    """The loss of the last row over that of the first, which is of the start; None without."""
    if "loss" not in table or table.empty or table["step"].iloc[0] != 0:
        return None
    first, last = float(table["loss"].iloc[0]), float(table["loss"].iloc[-1])
    return last / first if first > 0 and last > 0 else None


def _table(
    measured: pd.DataFrame | Sequence[NoiseScale],
    *,
    steps: Sequence[int] | None,
    batch_size: int | None,
) -> pd.DataFrame:
    """The rows, made from the list where it is one; SettingError for what is neither."""
    if isinstance(measured, pd.DataFrame):
        if missing := [name for name in NEEDED if name not in measured]:
            raise SettingError(
                f"the table has no column {', '.join(missing)}: give the rows of a run's noise.csv "
                "(read_noise), or a list of what measure_noise gives"
            )
        if steps is not None or batch_size is not None:
            raise SettingError("steps and batch size go with a list: a table has them, leave out")
        return measured
    scales = list(measured)
    if strangers := {type(each).__name__ for each in scales if not isinstance(each, NoiseScale)}:
        raise SettingError(
            f"a list of {', '.join(sorted(strangers))}: give what measure_noise returns, or the "
            "rows of a run's noise.csv as a table"
        )
    if batch_size is None:
        raise SettingError(
            "a list of noise scales without a batch size: give the batch_size of its run"
        )
    check_count("batch size", batch_size)
    if steps is not None and len(steps) != len(scales):
        raise SettingError(f"{len(steps)} steps for {len(scales)} noise scales: give one for each")
    rows = [
        {"step": step, "batch_size": batch_size, **scale.to_row()}
        for step, scale in zip(range(len(scales)) if steps is None else steps, scales, strict=True)
    ]
    return pd.DataFrame(rows, columns=None if rows else list(NEEDED))
