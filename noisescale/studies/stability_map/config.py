"""What a sweep is, as plain data: its problem, its grid, and how long each run is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from noisescale.errors import MOST_RUNS, SettingError, check_count
from noisescale.problems.config import FactoryConfig, ProblemConfig
from noisescale.statistics.display import Settings
from noisescale.training.config import BatchRule, TrainConfig, check_of_study, resolve_batch_size

BatchSize = int | BatchRule
SETTINGS = "sweep.json"  # what all cells of a folder have in common
DEFAULT_BATCH_SIZES = (1, 4, 16, 64, 256, 1024)
DEFAULT_WIDTH = 256  # of the command line's network: with it a map takes minutes
FOLD_RATES = 11  # of the command line with folds: with the default ends half a decade apart
MINIMUM_STEPS = 1000  # of runs from a checkpoint, by default; a rate at the edge may take longer
ROUNDING = 1e-9  # of a quotient of logarithms, which must not add a rate to the grid
# by name, what stands in the place of the defaults of the command line's options
PRESETS: dict[str, dict[str, Any]] = {
    "three-cases": {
        "batch_sizes": (1, 32, 1024),
        "dataset": "mnist",
        "pixel_scale": "raw",
        "width": 1024,
        "lr_min": 1e-6,
        "lr_max": 1e-1,
    }
}


@dataclass(frozen=True, kw_only=True, repr=False)
class Horizon(Settings):
    """How long each run is: in epochs, updates or examples, exactly one of which is given.

    Attributes:
        epochs: passes over the training set.
        steps: updates.
        examples: over all updates; the last batch may go beyond.
    """

    epochs: int | None = None
    steps: int | None = None
    examples: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        given = {name: amount for name, amount in vars(self).items() if amount is not None}
        if len(given) != 1:
            raise SettingError(
                f"{len(given)} horizons ({', '.join(given) or 'none'}): "
                "give one of epochs, steps, examples"
            )
        ((name, amount),) = given.items()
        check_count(name, amount)

    def limits(self, batch_size: int, num_examples: int) -> tuple[int, int | None]:
        """Epochs and max_steps of a TrainConfig for runs of this length.

        Args:
            batch_size: examples per update.
            num_examples: in the training set.
        """
        if self.epochs is not None:
            return self.epochs, None
        steps = (
            self.steps if self.steps is not None else math.ceil((self.examples or 0) / batch_size)
        )
        steps_an_epoch = math.ceil(num_examples / batch_size)
        return math.ceil(steps / steps_an_epoch), steps


@dataclass(frozen=True, kw_only=True, repr=False)
class SweepConfig(Settings):
    """A map of batch sizes and learning rates.

    Attributes:
        problem: what is trained.
        training: the optimizer, momentum and weight decay of every run; its batch size, learning
            rate, length and seed are the sweep's.
        batch_sizes: examples per update, or "full".
        lr_min: the smallest learning rate; the rates lie evenly in log η. None: three decades below
            the power of ten nearest to 2/λ_max where the runs start, of an adaptive optimizer 1e-5;
            or five below `lr_max`.
        lr_max: the largest learning rate; None: five decades above the smallest.
        num_lr: how many learning rates; every cell is run with every seed. None: as many as
            `factor` takes, and only cells that locate the edge are run: a scan with the first seed,
            then bisection with each.
        factor: between neighbouring learning rates, at most, where `num_lr` is None.
        num_seeds: seeds 0, 1, ... for initial parameters, and for an order of the examples at each
            batch size.
        precision: seeds are added, half as many again each time, until the 95 % interval of η_max
            spans no more than this factor; None: none are. Stopping so leaves the interval's
            coverage as it is where every seed has a threshold (.94 to .98, simulated), see
            `fit_edge`.
        max_seeds: at most, with `precision`.
        horizon: how long each run is.
        start: digest of the checkpoint that every run starts from, see `file_digest`; None: the
            runs start from initialisation.
        folds: k: each rate of the whole grid is run k times, once with each of k parts of the
            training examples held out, and seed i with part i, so that `num_seeds` is k as well;
            None: all runs train on all examples.

    Examples:
        >>> from noisescale import Horizon, ProblemConfig, SweepConfig
        >>> problem = ProblemConfig(dataset="digits", width=64)
        >>> sizes = (1, 16, "full")
        >>> config = SweepConfig(problem=problem, batch_sizes=sizes, horizon=Horizon(steps=500))
        >>> config.batch_sizes
        (1, 16, 'full')
    """

    problem: ProblemConfig | FactoryConfig
    training: TrainConfig = field(default_factory=TrainConfig)
    batch_sizes: tuple[BatchSize, ...] = DEFAULT_BATCH_SIZES
    lr_min: float | None = None
    lr_max: float | None = None
    num_lr: int | None = None
    factor: float = 1.25
    num_seeds: int = 5
    precision: float | None = None
    max_seeds: int = 40
    horizon: Horizon = Horizon(epochs=1)
    start: str | None = None
    folds: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_of_study(self.training)
        if self.folds is not None:
            self._check_folds()
        if not self.batch_sizes:
            raise SettingError("an empty grid: give at least one batch size")
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise SettingError(
                f"batch sizes {', '.join(map(str, self.batch_sizes))}: give each once"
            )
        couples = isinstance(self.problem, ProblemConfig) and self.problem.couples_examples
        if couples and 1 in self.batch_sizes:
            raise SettingError(
                "batch size 1 with batch norm, which has no variance: leave one of them out"
            )
        if "adaptive" in self.batch_sizes:
            raise SettingError(
                "an adaptive batch size has no place on a map of batch sizes: give numbers"
            )
        if self.num_lr is not None and self.num_lr < 1:
            raise SettingError(f"an empty grid: {self.num_lr} learning rates; give 1 or more")
        if self.num_seeds < 1:
            raise SettingError(f"an empty grid: {self.num_seeds} seeds; give 1 or more")
        for name in ("num_lr", "num_seeds", "max_seeds"):
            if getattr(self, name) is not None:
                check_count(name.replace("_", " "), getattr(self, name), most=MOST_RUNS)
        if not 1 < self.factor < 100:
            raise SettingError(f"factor {self.factor!r}: give a number above 1, such as 1.25")
        if self.precision is not None and not 1 < self.precision < math.inf:
            raise SettingError(f"precision {self.precision!r}: give a factor above 1, such as 1.25")
        if self.precision is not None and self.max_seeds < self.num_seeds:
            raise SettingError(
                f"{self.num_seeds} seeds, at most {self.max_seeds}: "
                "give fewer seeds, or more at most"
            )
        for rate in (self.lr_min, self.lr_max):
            if rate is not None:
                TrainConfig(learning_rate=rate)  # refuses what is no rate
        if self.lr_min is None or self.lr_max is None:
            if self.num_lr == 1:
                raise SettingError(
                    "one learning rate, and not which: give its --lr-min and the same --lr-max, or "
                    "more rates"
                )
            return
        if self.lr_min > self.lr_max:
            raise SettingError(
                f"learning rates from {self.lr_min:g} to {self.lr_max:g}: the smallest is above "
                "the largest; exchange --lr-min and --lr-max"
            )
        if self.num_lr == 1 and self.lr_min != self.lr_max:
            raise SettingError("one learning rate between two ends: give 2 or more, or equal ends")

    def _check_folds(self) -> None:
        """SettingError for folds that nothing can be chosen by, or settings they exclude."""
        check_count("folds", self.folds, most=MOST_RUNS)
        if self.folds == 1:
            raise SettingError("folds 1: nothing would be trained on; give 2 or more")
        if self.num_lr is None:
            raise SettingError(
                f"folds {self.folds} with bisection, which does not run every rate with each: give "
                "the number of learning rates as well"
            )
        if self.num_seeds != self.folds or self.precision is not None:
            raise SettingError(
                f"folds {self.folds} with {self.num_seeds} seeds and precision {self.precision}: "
                "each fold has a seed of its own; give as many seeds as folds, and no precision"
            )
        if self.start is not None:
            raise SettingError(
                f"folds {self.folds} from a checkpoint, which was trained on the examples held "
                "out: leave one of them out"
            )

    @property
    def learning_rates(self) -> list[float]:
        """The grid of rates, ascending, to six digits; its ends must be given."""
        import numpy as np  # not needed to read a configuration

        assert self.lr_min is not None
        assert self.lr_max is not None
        if self.lr_min == self.lr_max:
            return [float(self.lr_min)]
        num_rates = self.num_lr
        if num_rates is None:
            steps = math.log(self.lr_max / self.lr_min) / math.log(self.factor)
            num_rates = math.ceil(steps - ROUNDING) + 1
        rates = np.geomspace(self.lr_min, self.lr_max, num_rates)
        return list(dict.fromkeys(float(f"{rate:.6g}") for rate in rates))

    def run(
        self, batch_size: BatchSize, learning_rate: float, seed: int, *, num_examples: int
    ) -> TrainConfig:
        """How the run of one cell is trained.

        Args:
            batch_size: examples per update, or "full".
            learning_rate: on the mean loss of a batch.
            seed: of the initial parameters and the order of the examples.
            num_examples: in the training set.

        Raises:
            SettingError: there are fewer examples than a batch takes.
        """
        config = TrainConfig(
            **self.training.optimizer_settings(),
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
        )
        size = resolve_batch_size(config, num_examples)
        epochs, max_steps = self.horizon.limits(size, num_examples)
        return replace(config, epochs=epochs, max_steps=max_steps)

    def seeds_alike(self, batch_size: BatchSize, *, num_examples: int) -> bool:
        """Whether all seeds make the same run: gradient descent, from one checkpoint.

        Args:
            batch_size: examples per update, or "full".
            num_examples: in the training set.
        """
        return self.start is not None and batch_size in ("full", num_examples)

    def identity(self) -> dict[str, Any]:
        """What all cells of a folder must have in common, the content of sweep.json."""
        training = self.training.optimizer_settings()
        return {
            "problem": self.problem.to_dict(),
            "training": training,
            "horizon": vars(self.horizon),
            "start": self.start,
            **({} if self.folds is None else {"folds": self.folds}),
        }
