"""What a measurement of the critical batch size is, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from noisescale.errors import SettingError
from noisescale.problems.config import FactoryConfig, ProblemConfig
from noisescale.statistics.critical_batch.fit import FEWEST_SIZES, few_sizes
from noisescale.training.config import TrainConfig

GoalSplit = Literal["train", "test"]
LARGEST_SIZE = 2048  # of the default batch sizes
LEAST_FACTOR = 1.05
SHARES = (0.4, 0.25, 0.15, 0.1, 0.07)  # of the loss at the start, the default goals


@dataclass(frozen=True, kw_only=True)
class CriticalBatchConfig:
    """Runs at several batch sizes, each at its best learning rate, to several goals.

    problem: what is trained. training: the optimizer, momentum and weight decay of every run; its batch size,
        learning rate, length and seed are chosen here.
    batch_sizes: examples per update, four or more; see `default_batch_sizes`.
    goals: losses on a fixed subset of the split; the runs end at the lowest. None: 0.4, 0.25, 0.15, 0.1 and
        0.07 of the loss where seed 0 starts, to two digits.
    split: whose loss; "test" takes a problem with test examples.
    num_seeds: seeds 0, 1, ... for initial parameters and order of the examples.
    factor: between neighbouring learning rates.
    max_rate, rate_bend: ε* and B* of the law ε*/(1 + B*/B) that the first rates are centred on. None:
        ε_max and B_noise where seed 0 starts.
    epochs: of the first batch size's runs at most; the others' lengths follow from what it takes.
    noise_examples: of a random subset for each seed, on which the noise scale is measured along a run at a
        batch size near the critical one, H on a quarter as many; None: it is not.
    """

    problem: ProblemConfig | FactoryConfig
    training: TrainConfig = field(default_factory=TrainConfig)
    batch_sizes: tuple[int, ...] = ()
    goals: tuple[float, ...] | None = None
    split: GoalSplit = "train"
    num_seeds: int = 2
    factor: float = 2.0
    max_rate: float | None = None
    rate_bend: float | None = None
    epochs: int = 20
    noise_examples: int | None = 4000

    def __post_init__(self) -> None:
        if len(set(self.batch_sizes)) < len(self.batch_sizes):
            raise SettingError(
                f"batch sizes {', '.join(map(str, self.batch_sizes))}: give each once"
            )
        for size in self.batch_sizes:
            if not isinstance(size, int):
                raise SettingError(
                    f"batch size {size!r}: give whole numbers, from which steps can be fitted"
                )
            TrainConfig(batch_size=size)
        if len(self.batch_sizes) < FEWEST_SIZES:
            raise SettingError(few_sizes(self.batch_sizes))
        if (
            isinstance(self.problem, ProblemConfig)
            and self.problem.norm == "batch"
            and 1 in self.batch_sizes
        ):
            raise SettingError(
                "batch size 1 with batch norm, which has no variance: leave one of them out"
            )
        if self.split not in get_args(GoalSplit):
            raise SettingError(
                f"split {self.split!r}: choose one of {', '.join(get_args(GoalSplit))}"
            )
        if self.goals is not None:
            if not self.goals:
                raise SettingError("no goals: give a loss to reach, or several")
            for goal in self.goals:
                if not isinstance(goal, int | float) or not math.isfinite(goal):
                    raise SettingError(f"goal {goal!r}: give a loss to reach, a finite number")
            if len(set(self.goals)) < len(self.goals):
                raise SettingError(
                    f"goals {', '.join(f'{goal:g}' for goal in self.goals)}: give each once"
                )
        for name in ("num_seeds", "epochs"):
            number = getattr(self, name)
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise SettingError(
                    f"{name.replace('_', ' ')} {number!r}: give a whole number of 1 or more"
                )
        if self.noise_examples is not None and self.noise_examples < 16:
            raise SettingError(f"noise examples {self.noise_examples}: give 16 or more, or none")
        if not (isinstance(self.factor, int | float) and LEAST_FACTOR <= self.factor <= 100):
            raise SettingError(
                f"factor {self.factor!r}: give a number from {LEAST_FACTOR} to 100, such as 2"
            )
        if self.max_rate is not None:
            TrainConfig(learning_rate=self.max_rate)
        if self.rate_bend is not None and not 0 <= self.rate_bend < math.inf:
            raise SettingError(f"rate bend {self.rate_bend!r}: give a batch size of 0 or above")

    def run(
        self, batch_size: int, learning_rate: float, seed: int, *, max_steps: int
    ) -> TrainConfig:
        """How one run is trained, of so many updates at most."""
        return replace(
            self.training,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            epochs=max_steps,  # an epoch has an update or more, so that the steps end it
            max_steps=max_steps,
        )

    def identity(self) -> dict[str, Any]:
        """What all runs of a folder must have in common."""
        training = self.training.optimizer_settings()
        return {"problem": self.problem.to_dict(), "training": training, "split": self.split}


def default_batch_sizes(num_examples: int) -> tuple[int, ...]:
    """Powers of two from 1 to 2,048, as far as a quarter of the examples goes."""
    largest = min(LARGEST_SIZE, max(num_examples // 4, min(8, num_examples)))
    return tuple(2**power for power in range(largest.bit_length()))


def default_goals(start_loss: float) -> tuple[float, ...]:
    """The default shares of the loss at the start, to two digits."""
    return tuple(float(f"{share * start_loss:.2g}") for share in SHARES)
