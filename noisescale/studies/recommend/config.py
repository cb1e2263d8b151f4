"""What a recommendation is asked for, as plain data, and the time that it may take."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from noisescale.errors import SettingError, check_count, is_real
from noisescale.problems.config import FactoryConfig, ProblemConfig
from noisescale.statistics.display import Settings
from noisescale.studies.critical_batch.config import default_batch_sizes
from noisescale.training.config import TrainConfig, check_of_study

SETTINGS = "recommend.json"  # what all runs of the folder have in common
DEFAULT_EPOCHS = 10  # of the run that the noise is measured along, where the budget allows it
LONGEST = 7 * 24 * 60  # minutes
RESERVE = 0.08  # of all the time, for what is outside the phases: loading, tables, the picture


@dataclass(frozen=True, kw_only=True, repr=False)
class RecommendConfig(Settings):
    """Which problem a batch size is wanted for, how it is trained, and how long that may take.

    Attributes:
        problem: what is trained.
        training: the optimizer, momentum, weight decay and seed of every run; its batch size,
            learning rate and length are chosen here.
        batch_size: the one in use, at which the runs are made; None: the middle one of those that
            a measurement of the critical batch size tries.
        learning_rate: the one in use, with which the search of a better one begins; None: begins
            where the first step promises to take as much of the loss as those of good runs do.
        epochs: passes over the training examples of the tracked run, at most: the training that the
            batch size is for.
        minutes: in which all of it ends.
    """

    problem: ProblemConfig | FactoryConfig
    training: TrainConfig = field(default_factory=TrainConfig)
    batch_size: int | None = None
    learning_rate: float | None = None
    epochs: int = DEFAULT_EPOCHS
    minutes: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_of_study(self.training)
        check_count("epochs", self.epochs)
        if self.batch_size is not None:
            check_count("batch size", self.batch_size)
        if self.learning_rate is not None:
            TrainConfig(learning_rate=self.learning_rate)  # refuses what is no rate
        if not (is_real(self.minutes) and 0 < self.minutes <= LONGEST):
            raise SettingError(
                f"minutes {self.minutes!r}: give a number above 0, {LONGEST:,} at most, such as 5"
            )

    def size_of_runs(self, num_examples: int) -> int:
        """The batch size that the runs are made at.

        Args:
            num_examples: in the training set.

        Raises:
            SettingError: a batch larger than the training set.
        """
        if self.batch_size is None:
            sizes = default_batch_sizes(num_examples)
            return sizes[len(sizes) // 2]
        if self.batch_size > num_examples:
            raise SettingError(
                f"batch size {self.batch_size}: there are {num_examples} training examples; give 1 "
                f"to {num_examples}"
            )
        return self.batch_size

    def steps(self, batch_size: int, num_examples: int) -> int:
        """Updates in so many epochs.

        Args:
            batch_size: examples per update.
            num_examples: in the training set.
        """
        return self.epochs * math.ceil(num_examples / batch_size)

    def identity(self) -> dict[str, Any]:
        """What all runs of a folder must have in common, the content of recommend.json."""
        return {
            "problem": self.problem.to_dict(),
            "training": self.training.optimizer_settings(),
            "seed": self.training.seed,
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "epochs": self.epochs,
        }


class Budget:
    """Seconds that may be spent, by any clock.

    Args:
        seconds: in all.
        clock: gives seconds from some moment on, as time.monotonic.
    """

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self.seconds = seconds
        self._clock = clock
        self._started = clock()

    def now(self) -> float:
        """What the clock shows."""
        return self._clock()

    def add(self, seconds: float) -> None:
        """Counts what was spent before, by what is kept of it."""
        self._started -= seconds

    @property
    def spent(self) -> float:
        return self._clock() - self._started

    @property
    def left(self) -> float:
        """Seconds that phases may still take."""
        return (1 - RESERVE) * self.seconds - self.spent
