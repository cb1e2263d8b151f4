"""The tasks of the fronts: small networks and closed forms, several optimizers, early goals.

`minutes` are about those of one core at full scale, in which some 130 runs and nine beside were
made on an AMD EPYC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from noisescale import CriticalBatchConfig, ProblemConfig, TrainConfig
from noisescale.problems.config import DatasetName
from noisescale.problems.factory import factory_config
from noisescale.studies.critical_batch.config import GoalSplit

SGD = TrainConfig()
MOMENTUM = TrainConfig(momentum=0.9)
ADAM = TrainConfig(optimizer="adam")
ADAMW = TrainConfig(optimizer="adamw", weight_decay=0.01)
MOMENTUM_RATE = 0.1  # ε* of the first rates with momentum, since ε_max is of a step without it
NUM_SEEDS = 3
NOISE_EXAMPLES, FEWER = (2000, 250), (1000, 128)  # FEWER: of convolutions, which take longer
# examples, multiples of every batch size: an epoch would end on a smaller batch at the whole one's
# rate, and E = B·S count what it has not seen (of 1,297 digits, a sixth of it at B = 256)
MNIST, DIGITS, SHAKESPEARE, MARKOV = 29 * 2048, 1024, 122 * 256, 43 * 256
QUICK_SIZES, QUICK_GOALS, QUICK_SEEDS = 4, 2, 2  # sizes evenly spread, the earliest goals


def doubled(smallest: int, largest: int) -> tuple[int, ...]:
    """Powers of two from the smallest to the largest."""
    return tuple(2**power for power in range(smallest.bit_length() - 1, largest.bit_length()))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A front and the noise scales beside it.

    name: of its folder. problem: a configuration, or the name of a function in front_problems.
    goals: losses on the split, the highest first. batch_sizes: ascending. minutes: see above.
    epochs: of the middle batch size's runs at most. max_rate: ε* of the first rates; None: by the
    curvature, or the optimizer's usual one. noise_examples: of a measurement of the noise
    beside it, and those among them on which H is measured. branches: whether B_crit is measured by
    these as well. sign: whether B_ℓ1 of sign descent is measured beside it too.
    """

    name: str
    problem: ProblemConfig | str
    goals: tuple[float, ...]
    minutes: float
    training: TrainConfig = field(default_factory=TrainConfig)
    batch_sizes: tuple[int, ...] = doubled(2, 1024)
    split: GoalSplit = "train"
    epochs: int = 20
    max_rate: float | None = None
    noise_examples: tuple[int, int] = NOISE_EXAMPLES
    branches: bool = False
    sign: bool = False

    def config(self, scale: str) -> CriticalBatchConfig:
        """The measurement of its front at a scale, "quick" or "full"."""
        quick = scale == "quick"
        problem = (
            factory_config(f"experiments.noise.front_problems:{self.problem}")
            if isinstance(self.problem, str)
            else self.problem
        )
        last = len(self.batch_sizes) - 1
        spread = [round(part * last / (QUICK_SIZES - 1)) for part in range(QUICK_SIZES)]
        return CriticalBatchConfig(
            problem=problem,
            training=self.training,
            batch_sizes=tuple(self.batch_sizes[place] for place in spread)
            if quick
            else self.batch_sizes,
            goals=self.goals[:QUICK_GOALS] if quick else self.goals,
            split=self.split,
            num_seeds=QUICK_SEEDS if quick else NUM_SEEDS,
            max_rate=self.max_rate,
            epochs=self.epochs,
            noise_examples=None,  # measured at several rates and sizes afterwards
        )


def _mnist(
    name: str,
    *,
    minutes: float,
    training: TrainConfig = SGD,
    goals: tuple[float, ...] = (1.2, 0.8, 0.5, 0.3),
    noise_examples: tuple[int, int] = NOISE_EXAMPLES,
    branches: bool = False,
    **problem: Any,
) -> Task:
    """A network on MNIST."""
    return Task(
        name=f"mnist-{name}",
        problem=ProblemConfig(dataset="mnist", num_train=MNIST, **problem),
        training=training,
        goals=goals,
        batch_sizes=doubled(8, 2048),
        epochs=2,
        max_rate=MOMENTUM_RATE if training.momentum else None,
        noise_examples=noise_examples,
        branches=branches,
        minutes=minutes,
    )


def _digits(
    name: str,
    *,
    minutes: float,
    training: TrainConfig = SGD,
    goals: tuple[float, ...] = (1.2, 0.8, 0.5, 0.3, 0.15),
    noise_examples: tuple[int, int] = NOISE_EXAMPLES,
    problem: str | None = None,
    max_rate: float | None = None,
    branches: bool = False,
    **network: Any,
) -> Task:
    """A network on the digits, which are passed over several times."""
    return Task(
        name=f"digits-{name}",
        problem=problem or ProblemConfig(dataset="digits", num_train=DIGITS, **network),
        training=training,
        goals=goals,
        batch_sizes=doubled(1, 512),
        epochs=100,
        max_rate=MOMENTUM_RATE if training.momentum else max_rate,
        noise_examples=noise_examples,
        branches=branches,
        minutes=minutes,
    )


def _closed(
    problem: str, goals: tuple[float, ...], *, minutes: float, training: TrainConfig = SGD
) -> Task:
    """A problem whose expected loss, which its test examples give, has a closed form."""
    name = problem.replace("_", "-") + ("-momentum" if training.momentum else "")
    return Task(
        name=name,
        problem=problem,
        goals=goals,
        split="test",
        training=training,
        batch_sizes=doubled(1, 512),
        max_rate=MOMENTUM_RATE if training.momentum else None,
        minutes=minutes,
    )


def _gpt(
    name: str,
    goals: tuple[float, ...],
    *,
    minutes: float,
    training: TrainConfig = ADAMW,
    dataset: DatasetName = "shakespeare",
    width: int = 32,
    depth: int = 2,
    branches: bool = False,
) -> Task:
    """A character GPT, its batch sizes in sequences of 32 characters."""
    return Task(
        name=f"gpt-{name}",
        problem=ProblemConfig(
            dataset=dataset,
            num_train=MARKOV if dataset == "markov" else SHAKESPEARE,
            model="gpt",
            width=width,
            depth=depth,
            heads=2,
            context=32,
        ),
        training=training,
        goals=goals,
        batch_sizes=doubled(1, 256),
        epochs=2,
        noise_examples=(500, 64),  # products with H take longest of all here
        branches=branches,
        sign=True,
        minutes=minutes,
    )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        _mnist("narrow", width=32, depth=1, minutes=3),
        _mnist("mlp", width=64, branches=True, minutes=6),
        _mnist("wide", width=256, minutes=10),
        _mnist("deep", width=64, depth=4, minutes=7),
        _mnist("momentum", width=64, training=MOMENTUM, minutes=5),
        _mnist("adam", width=64, training=ADAM, minutes=7),
        # networks of their own: with another's its runs would be the same but for the decay, and
        # the other no task that is not seen
        _mnist("adamw", width=128, depth=3, training=ADAMW, minutes=10),
        # a fifth of the labels wrong: the least loss is some .95, of squared error some .05
        _mnist("noisy-labels", width=64, label_noise=0.2, goals=(1.9, 1.6, 1.4, 1.25), minutes=3),
        _mnist("squared-error", width=64, loss="mse", goals=(0.3, 0.2, 0.13, 0.09), minutes=5),
        _mnist(
            "cnn",
            model="cnn",
            width=8,
            goals=(1.2, 0.8, 0.5),
            noise_examples=FEWER,
            minutes=22,
        ),
        _digits("narrow", width=32, depth=1, minutes=2),
        _digits("mlp", width=128, branches=True, minutes=3),
        # where it starts the curvature along the gradient is negative
        _digits("deep", width=64, depth=4, max_rate=0.3, minutes=5),
        _digits("momentum", width=64, training=MOMENTUM, minutes=4),
        _digits("adam", width=64, training=ADAM, minutes=4),
        _digits("squared-error", width=64, loss="mse", goals=(0.3, 0.2, 0.13, 0.09), minutes=2),
        _digits("noisy-labels", width=64, label_noise=0.2, goals=(1.9, 1.6, 1.4, 1.2), minutes=3),
        _digits("logistic", problem="digits_logistic", minutes=2),
        _digits(
            "residual",
            problem="digits_residual",
            noise_examples=FEWER,
            goals=(1.2, 0.8, 0.5, 0.3),
            minutes=17,
        ),
        _digits(
            "residual-adam",
            problem="digits_residual",
            noise_examples=FEWER,
            training=ADAM,
            minutes=22,
        ),
        _closed("quadratic_steep", (0.43, 0.29, 0.14, 0.086), minutes=2),
        _closed("quadratic_white", (0.6, 0.41, 0.24, 0.15), minutes=2),
        _closed("quadratic_curved", (0.43, 0.29, 0.14, 0.086), minutes=2),
        _closed("quadratic_steep", (0.43, 0.29, 0.14, 0.086), training=MOMENTUM, minutes=2),
        _closed("regression", (0.43, 0.29, 0.14, 0.086), minutes=2),
        _gpt("shakespeare", (3.4, 3.1, 2.8, 2.6), branches=True, minutes=60),
        _gpt("shakespeare-adam", (3.4, 3.1, 2.8), training=ADAM, width=64, depth=1, minutes=32),
        _gpt("markov", (3.1, 2.9, 2.75), dataset="markov", minutes=35),
    )
}
