"""What a measurement of the critical batch size is, as plain data."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from noisescale.errors import MOST_RUNS, SettingError, check_choice, check_count, is_real
from noisescale.problems.config import AnyConfig, FactoryConfig, ObjectConfig, ProblemConfig
from noisescale.statistics.display import Settings
from noisescale.training.config import TrainConfig, check_of_study

if TYPE_CHECKING:
    from noisescale.statistics.estimate import Estimate

GoalSplit = Literal["train", "test"]
SETTINGS = "critical_batch.json"  # what all runs of a measurement's folder have in common
BRANCH_SETTINGS, BRANCH_RESULT = "branches.json", "branch.json"
FIRMER_SIZES = 6  # about a B_crit that is to be measured: a factor of five on either side of it
OWN_FACTORY = "FILE.py:FACTORY"  # in a command, for a function of the user's own
MLP_WIDTH = 1024  # of `mlp`, where no width is given
DEFAULT_WIDTH = 256  # of the command line's network: with it a measurement takes minutes
LARGEST_SIZE = 2048  # of the default ones: beyond B_crit each doubling doubles the examples taken
LEAST_FACTOR = 1.05  # between rates: at less, the span that is searched takes over 86 of them
LARGEST_FACTOR = 100  # between rates: one step crosses all that train
SHARES = (0.4, 0.25, 0.15, 0.1, 0.07)  # of the loss at the start, about even in its logarithm
FEWEST_NOISE_EXAMPLES = 16  # H is measured on a quarter of them, and errors take 3 or more
# by name, what stands in the place of the defaults of the command line's options
PRESETS: dict[str, dict[str, Any]] = {
    "mnist-paper": {
        "dataset": "mnist",
        "batch_sizes": tuple(sorted({round(2 ** (power / 2)) for power in range(25)})),
        "goals": (1.0, 0.6, 0.4, 0.25, 0.16, 0.1),
        "num_seeds": 5,
        "factor": round(math.sqrt(2), 6),
        "noise_examples": 10_000,
    }
}


@dataclass(frozen=True, kw_only=True, repr=False)
class CriticalBatchConfig(Settings):
    """Runs at several batch sizes, each at its best learning rate, to several goals.

    Attributes:
        problem: what is trained.
        training: the optimizer, momentum and weight decay of every run, and how its examples are
            drawn; its batch size, learning rate, length and seed are chosen here.
        batch_sizes: examples per update, four or more; None or (): `default_batch_sizes`, powers
            of two as the training set allows.
        goals: losses on a fixed subset of the split; the runs end at the lowest. None: 0.4, 0.25,
            0.15, 0.1 and 0.07 of the loss where seed 0 starts, to two digits.
        split: whose loss; "test" takes a problem with test examples.
        num_seeds: seeds 0, 1, ... for initial parameters, and for an order of the examples at each
            batch size.
        factor: between neighbouring learning rates.
        max_rate: ε* of the law ε*/(1 + B*/B) that the first rates are centred on. None: ε_max by
            the curvature where seed 0 starts; 1e-3 of adaptive optimizers.
        rate_bend: B* of that law. None: B_noise where seed 0 starts.
        epochs: of the first (middle) batch size's runs at most; the lengths of the others follow
            from what it takes.
        noise_examples: of a random subset for each seed, on which the noise scale is measured
            along a run at a batch size near the critical one, H on a quarter as many; None: it is
            not.

    Examples:
        >>> from noisescale import CriticalBatchConfig, ProblemConfig
        >>> problem = ProblemConfig(dataset="digits", width=64)
        >>> sizes = (1, 4, 16, 64)
        >>> CriticalBatchConfig(problem=problem, batch_sizes=sizes, goals=(1.0, 0.5)).num_seeds
        3
    """

    problem: ProblemConfig | FactoryConfig
    training: TrainConfig = field(default_factory=TrainConfig)
    batch_sizes: tuple[int, ...] | None = None
    goals: tuple[float, ...] | None = None
    split: GoalSplit = "train"
    num_seeds: int = 3
    factor: float = 2.0
    max_rate: float | None = None
    rate_bend: float | None = None
    epochs: int = 20
    noise_examples: int | None = 4000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_of_study(self.training, any_sampling=True)
        if self.batch_sizes:
            _check_batch_sizes(self.batch_sizes, self.problem)
        if self.goals is not None:
            _check_goals(self.goals)
        check_choice("split", self.split, get_args(GoalSplit))
        check_count("num seeds", self.num_seeds, most=MOST_RUNS)
        check_count("epochs", self.epochs)
        if self.noise_examples is not None and self.noise_examples < FEWEST_NOISE_EXAMPLES:
            raise SettingError(
                f"noise examples {self.noise_examples}: give {FEWEST_NOISE_EXAMPLES} or more, "
                "or none"
            )
        if not (is_real(self.factor) and LEAST_FACTOR <= self.factor <= LARGEST_FACTOR):
            raise SettingError(
                f"factor {self.factor!r}: give a number from {LEAST_FACTOR} to {LARGEST_FACTOR}, "
                "such as 2"
            )
        if self.max_rate is not None:
            TrainConfig(learning_rate=self.max_rate)  # refuses what is no rate
        if self.rate_bend is not None and not 0 <= self.rate_bend < math.inf:
            raise SettingError(f"rate bend {self.rate_bend!r}: give a batch size of 0 or above")

    def resolved(self, *, num_examples: int) -> CriticalBatchConfig:
        """The configuration with its batch sizes given.

        Args:
            num_examples: in the training set, by which the default batch sizes go.
        """
        sizes = self.batch_sizes or default_batch_sizes(num_examples)
        return replace(self, batch_sizes=sizes)

    def run(
        self, batch_size: int, learning_rate: float, seed: int, *, max_steps: int
    ) -> TrainConfig:
        """How one run is trained.

        Args:
            batch_size: examples per update.
            learning_rate: on the mean loss of a batch.
            seed: of the initial parameters and the order of the examples.
            max_steps: updates at most.
        """
        return replace(
            self.training,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            epochs=max_steps,  # an epoch has an update or more, so that the steps end it
            max_steps=max_steps,
        )

    def identity(self) -> dict[str, Any]:
        """What all runs of a folder must have in common, the content of critical_batch.json."""
        training = self.training.optimizer_settings()
        return {"problem": self.problem.to_dict(), "training": training, "split": self.split}


def _check_batch_sizes(sizes: tuple[int, ...], problem: ProblemConfig | FactoryConfig) -> None:
    from noisescale.statistics.critical_batch.curves.runs import (  # loads SciPy
        FEWEST_SIZES,
        few_sizes,
    )

    if len(set(sizes)) < len(sizes):
        raise SettingError(f"batch sizes {', '.join(map(str, sizes))}: give each once")
    for size in sizes:
        check_count("batch size", size)
    if len(sizes) < FEWEST_SIZES:
        raise SettingError(few_sizes(sizes))
    if isinstance(problem, ProblemConfig) and problem.couples_examples and 1 in sizes:
        raise SettingError(
            "batch size 1 with batch norm, which has no variance: leave one of them out"
        )


def _check_goals(goals: tuple[float, ...]) -> None:
    if not goals:
        raise SettingError("no goals: give a loss to reach, or several")
    for goal in goals:
        if not is_real(goal) or not math.isfinite(goal):
            raise SettingError(f"goal {goal!r}: give a loss to reach, a finite number")
    if len(set(goals)) < len(goals):
        raise SettingError(f"goals {', '.join(f'{goal:g}' for goal in goals)}: give each once")


def default_batch_sizes(num_examples: int) -> tuple[int, ...]:
    """Powers of two from 1 to 2,048, as far as a quarter of the examples goes."""
    largest = min(LARGEST_SIZE, max(num_examples // 4, min(8, num_examples)))
    return tuple(2**power for power in range(largest.bit_length()))


def default_goals(start_loss: float) -> tuple[float, ...]:
    """The default shares of the loss at the start, to two digits."""
    return tuple(float(f"{share * start_loss:.2g}") for share in SHARES)


def firmer_command(
    problem: AnyConfig | None,
    training: TrainConfig,
    *,
    critical: Estimate | None = None,
    num_examples: int = 1,
) -> str:
    """The `critical-batch` that measures B_crit, at batch sizes about the one expected.

    Args:
        problem: what is trained; None, and an object of Python: it stands for a factory.
        training: its optimizer, momentum and weight decay count.
        critical: B_crit as far as it is known; None: the command chooses the sizes.
        num_examples: in the training set.
    """
    words = ["noisescale critical-batch", *study_words(problem)]
    words += optimizer_words(training)
    if critical is not None:
        near = sorted(
            default_batch_sizes(num_examples),
            key=lambda size: abs(math.log(size / critical.value)),
        )
        words += [f"--bs {size}" for size in sorted(near[:FIRMER_SIZES])]
    return " ".join(words)


def problem_words(problem: AnyConfig | None) -> list[str]:
    """The options of a command that name this problem, or one's own that is not known by a name."""
    if problem is None or isinstance(problem, ObjectConfig):
        return [f"--problem {OWN_FACTORY}"]
    if isinstance(problem, FactoryConfig):
        return [f"--problem {shlex.quote(problem.factory)}"]
    options = {"dataset": problem.dataset} | problem.changed()
    options.pop("text_sha256", None)  # read from the file
    return [_option(name, value) for name, value in options.items()]


def study_words(problem: AnyConfig | None) -> list[str]:
    """The same for a study's command, which takes a narrower network by itself."""
    words = problem_words(problem)
    if isinstance(problem, ProblemConfig) and problem.model == "mlp" and problem.width is None:
        words.append(f"--width {MLP_WIDTH}")
    return words


def optimizer_words(training: TrainConfig) -> list[str]:
    """The options of a command that name this optimizer, as far as it is not the default one."""
    defaults = TrainConfig().optimizer_settings()
    return [
        _option(name, value)
        for name, value in training.optimizer_settings().items()
        if value != defaults.get(name)
    ]


def _option(name: str, value: object) -> str:
    spelt = f"--{name.replace('_', '-')}"
    return spelt if value is True else f"{spelt} {shlex.quote(str(value))}"
