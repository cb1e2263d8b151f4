"""How a run is trained, as plain data, and what follows from that by arithmetic."""

from __future__ import annotations

import dataclasses
import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from noisescale.errors import LARGEST, SettingError, check_choice, check_count, is_real
from noisescale.problems.config import Amp, Config
from noisescale.statistics.display import Settings
from noisescale.statistics.stability.limits import limit_of_heavy_ball

OptimizerName = Literal["sgd", "adam", "adamw", "rmsprop", "muon"]
BatchRule = Literal["full", "adaptive"]
LrScaling = Literal["none", "sqrt", "linear", "noise"]
LrSchedule = Literal["constant", "cosine", "wsd"]
Sampling = Literal["shuffle", "importance"]
DECAY_SHARE = 0.2  # 10 to 20 % are customary (Hägele et al. 2024, arXiv 2405.18392)
SAMPLING_FLOOR = 0.2  # a gradient then counts five times at most, and an epoch draws most examples
MOST_WARMUP = 2**53  # updates, beyond which a float is no whole number
# what those options are where they are not given, as torch.optim has them; 0.999 and 1e-8 of Muon
# are of the AdamW beside it
BETA1 = {"adam": 0.9, "adamw": 0.9, "muon": 0.95}
BETA2 = {"adam": 0.999, "adamw": 0.999, "rmsprop": 0.99, "muon": 0.999}
EPSILON = dict.fromkeys(BETA2, 1e-8)
ADAPTIVE_RATE = 1e-3  # a learning rate to begin with, of all but SGD: their customary default
# the fields that say how a gradient becomes an update; those of the first release, then later ones,
# which are stored only where they are not at their defaults
OF_OPTIMIZER = ("optimizer", "momentum", "weight_decay")
OF_OPTIMIZER_LATER = ("nesterov", "beta1", "beta2", "epsilon")
OF_SAMPLING = ("sampling", "sampling_floor")  # what gradients are means of; stored likewise


@dataclass(frozen=True, kw_only=True, repr=False)
class AdaptiveConfig(Settings):
    """How a batch size follows the noise scale: B = √(r·B_simple), see `AdaptiveBatchSize`.

    Attributes:
        exchange_rate: r, how many examples one would spend to save a step.
        initial_batch_size: where it starts, in examples; the learning rate is the one for it.
        min_batch_size: its lower bound, 2 or more.
        max_batch_size: its upper bound; None: 4,096, or all training examples where there are
            fewer.
        hysteresis: the factor, above 1, by which the batch size must be wrong before it changes.
        noise_memory: the number of examples after which an update's weight in the running B_simple
            has fallen to 1/e.
        lr_scaling: how the learning rate follows the batch size B from its initial B_0: "none" (not
            at all), "sqrt" (as √B), "linear" (as B) or "noise" (as 1/(1 + B_simple/B)).

    Raises:
        SettingError: for a value out of its range.

    Examples:
        >>> from noisescale import AdaptiveConfig, TrainConfig
        >>> adaptive = AdaptiveConfig(exchange_rate=300)
        >>> TrainConfig(batch_size="adaptive", adaptive=adaptive).batch_size
        'adaptive'
    """

    exchange_rate: float = 1000.0
    initial_batch_size: int = 32
    min_batch_size: int = 8
    max_batch_size: int | None = None
    hysteresis: float = 1.25
    noise_memory: int = 20_000
    lr_scaling: LrScaling = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        _as_floats(self, "exchange_rate", "hysteresis")
        check_choice("lr scaling", self.lr_scaling, get_args(LrScaling))
        for name in ("initial_batch_size", "min_batch_size", "max_batch_size", "noise_memory"):
            if name != "max_batch_size" or self.max_batch_size is not None:
                check_count(name.replace("_", " "), getattr(self, name))
        if self.noise_memory > LARGEST:
            raise SettingError(
                f"noise memory {self.noise_memory}: give a number of examples below 3e38"
            )
        if not (is_real(self.exchange_rate) and 0 < self.exchange_rate <= LARGEST):
            raise SettingError(
                f"exchange rate {self.exchange_rate!r}: "
                "give the examples worth a step, a number above 0"
            )
        if not (is_real(self.hysteresis) and 1 < self.hysteresis <= LARGEST):
            raise SettingError(
                f"hysteresis {self.hysteresis!r}: give a factor above 1, such as 1.25"
            )
        largest = math.inf if self.max_batch_size is None else self.max_batch_size
        if not 2 <= self.min_batch_size <= self.initial_batch_size <= largest:
            raise SettingError(
                f"batch sizes from {self.min_batch_size} by way of {self.initial_batch_size} to "
                f"{self.max_batch_size or 'the default'}: give 2 <= smallest <= initial <= largest"
            )


ADAPTIVE_DEFAULTS = {field.name: field.default for field in dataclasses.fields(AdaptiveConfig)}


@dataclass(frozen=True, kw_only=True, repr=False)
class TrainConfig(Config):
    """How to train.

    Attributes:
        batch_size: examples per update, "full" for gradient descent on all of them, or "adaptive":
            B = √(r·B_simple) with the noise scale measured from the very gradients of training.
        learning_rate: of the update on the *mean* loss of the batch; what it is at each update
            follows from `warmup` and `lr_schedule` or, of an adaptive batch size, `lr_scaling`.
        optimizer: "sgd", "adam", "adamw", "rmsprop" or "muon": torch.optim.Muon, of torch 2.9 or
            later, for the weights of linear layers but the last one, and AdamW for all else, see
            `muon_names`.
        momentum: SGD's, in [0, 1), as heavy ball; the other optimizers take none.
        weight_decay: as torch.optim defines it for the optimizer.
        nesterov: whether SGD's momentum is Nesterov's.
        beta1: the decay of the mean gradient of Adam, AdamW and Muon, whose momentum it is; None:
            0.9, of Muon 0.95.
        beta2: that of the mean squared gradient, RMSprop's smoothing constant; None: 0.999, of
            RMSprop 0.99.
        epsilon: what an adaptive optimizer adds to the root of that; None: 1e-8.
        warmup: the updates over which the rate rises in proportion to their number; below 1, their
            share of all updates.
        lr_schedule: the rate after that: "constant"; "cosine", down to zero at the end (Loshchilov
            and Hutter 2017); or "wsd", constant and then down to zero in a straight line (Hu et al.
            2024, arXiv 2404.06395).
        decay_share: of all updates, the last ones, in which the rate of "wsd" falls.
        epochs: passes over the training set, unless max_steps ends the training first.
        max_steps: updates at most; None: as many as the epochs take.
        seed: of the initial parameters and, unless order_seed is given, the order of the examples.
        order_seed: of the order of the examples and of what a Dataset draws for them; None: the
            seed. Runs that are to be independent at one seed, such as those of a study at several
            batch sizes, have one each.
        sampling: "shuffle": every example once an epoch, in a new order; "importance": with
            replacement, an example with a chance p_i that goes with the norm of its gradient when
            it was last drawn, its loss counted 1/(N·p_i) times, so that the mean gradient stays
            what it is, see docs/how-to/train.md. Then losses.csv has these weighted means, and an
            epoch is N draws.
        sampling_floor: of importance sampling: the least p_i, as a share of 1/N.
        adaptive: how an adaptive batch size follows the noise; None: as AdaptiveConfig's defaults
            say. No other batch size takes it.
        amp: "bf16": the model runs under torch.autocast, its matrix products in bfloat16; weights,
            the loss and updates are float32. None: it does not. Evaluations and what is measured
            along the run are float32.

    Raises:
        SettingError: for a value out of its range, or settings that exclude each other.

    Examples:
        >>> from noisescale import TrainConfig
        >>> TrainConfig(batch_size=64, learning_rate=0.05, epochs=2)
        TrainConfig(batch_size=64, learning_rate=0.05, epochs=2)
    """

    always_shown = ("batch_size", "learning_rate")

    batch_size: int | BatchRule = 32
    learning_rate: float = 0.01
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False
    beta1: float | None = None
    beta2: float | None = None
    epsilon: float | None = None
    warmup: float = 0.0
    lr_schedule: LrSchedule = "constant"
    decay_share: float = DECAY_SHARE
    epochs: int = 5
    max_steps: int | None = None
    seed: int = 0
    order_seed: int | None = None
    sampling: Sampling = "shuffle"
    sampling_floor: float = SAMPLING_FLOOR
    adaptive: AdaptiveConfig | None = None
    amp: Amp | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.amp is not None:
            check_choice("amp", self.amp, get_args(Amp))
        _as_floats(self, "learning_rate", "momentum", "weight_decay", "beta1", "beta2", "epsilon")
        _as_floats(self, "warmup", "decay_share", "sampling_floor")
        if self.batch_size not in get_args(BatchRule):
            check_count("batch size", self.batch_size, instead=', "full" or "adaptive"')
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        if not (is_real(self.learning_rate) and 0 < self.learning_rate <= LARGEST):
            raise SettingError(
                f"learning rate {self.learning_rate!r}: "
                "give a number above 0 and below 3e38, such as 0.01"
            )
        if not (is_real(self.momentum) and 0 <= self.momentum < 1):
            raise SettingError(f"momentum {self.momentum!r}: give a number in [0, 1), such as 0.9")
        if self.momentum and self.optimizer != "sgd":
            raise SettingError(
                f"momentum {self.momentum!r} with {self.optimizer}: only sgd takes a momentum"
            )
        if not (is_real(self.weight_decay) and 0 <= self.weight_decay <= LARGEST):
            raise SettingError(
                f"weight decay {self.weight_decay!r}: give a number of 0 or above, below 3e38"
            )
        self._check_optimizer()
        self._check_schedule()
        self._check_sampling()
        check_count("epochs", self.epochs)
        if self.max_steps is not None:
            check_count("max steps", self.max_steps)
        seeds = {"seed": self.seed}
        if self.order_seed is not None:
            seeds["order seed"] = self.order_seed
        for name, seed in seeds.items():
            if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
                raise SettingError(f"{name} {seed!r}: give a whole number from 0 to 2**63 - 1")
        if not isinstance(self.adaptive, AdaptiveConfig | None):
            raise SettingError(f"adaptive {self.adaptive!r}: give an AdaptiveConfig, or None")
        if self.batch_size == "adaptive":
            object.__setattr__(self, "adaptive", self.adaptive or AdaptiveConfig())
        elif self.adaptive is not None:
            raise SettingError(
                f"adaptive settings with batch size {self.batch_size}: "
                "only an adaptive batch size takes them"
            )

    def _check_optimizer(self) -> None:
        """SettingError for options of another optimizer, or out of their range."""
        if not isinstance(self.nesterov, bool):
            raise SettingError(f"nesterov {self.nesterov!r}: give True or False")
        if self.nesterov and not self.momentum:
            raise SettingError(
                f"nesterov with momentum {self.momentum:g}: give sgd a momentum, such as 0.9"
            )
        for name, defaults in (("beta1", BETA1), ("beta2", BETA2), ("epsilon", EPSILON)):
            value = getattr(self, name)
            if value is None:
                continue
            if self.optimizer not in defaults:
                raise SettingError(
                    f"{name} {value!r} with {self.optimizer}: only {', '.join(defaults)} take one"
                )
            most, example = (LARGEST, "1e-8") if name == "epsilon" else (1, defaults["adam"])
            if not (is_real(value) and 0 <= value < most):
                raise SettingError(
                    f"{name} {value!r}: give a number from 0 to below {most:g}, such as {example}"
                )

    def _check_schedule(self) -> None:
        """SettingError for a course of the learning rate that is none."""
        check_choice("lr schedule", self.lr_schedule, get_args(LrSchedule))
        whole = is_real(self.warmup) and (self.warmup < 1 or float(self.warmup).is_integer())
        if not (whole and 0 <= self.warmup <= MOST_WARMUP):
            raise SettingError(
                f"warm-up {self.warmup!r}: give a whole number of updates, such as 100, or a share "
                "of them below 1, such as 0.05"
            )
        if not (is_real(self.decay_share) and 0 < self.decay_share <= 1):
            raise SettingError(
                f"decay share {self.decay_share!r}: give a number above 0, 1 at most, such as 0.2"
            )
        if self.lr_schedule != "wsd" and self.decay_share != DECAY_SHARE:
            raise SettingError(
                f"decay share {self.decay_share:g} with lr schedule {self.lr_schedule}: only wsd "
                "takes one"
            )
        if self.batch_size == "adaptive" and not self.has_constant_rate:
            raise SettingError(
                "a warm-up or an lr schedule with an adaptive batch size, whose number of updates "
                "is not known beforehand: leave one of them out"
            )

    def _check_sampling(self) -> None:
        """SettingError for a way to draw examples that is none."""
        check_choice("sampling", self.sampling, get_args(Sampling))
        if not (is_real(self.sampling_floor) and 0 < self.sampling_floor <= 1):
            raise SettingError(
                f"sampling floor {self.sampling_floor!r}: give a number above 0, 1 at most, such "
                f"as {SAMPLING_FLOOR:g}"
            )
        if self.sampling == "shuffle" and self.sampling_floor != SAMPLING_FLOOR:
            raise SettingError(
                f"sampling floor {self.sampling_floor:g} with sampling shuffle: only importance "
                "takes one"
            )
        if self.sampling == "importance" and self.batch_size in get_args(BatchRule):
            why = {
                "full": "takes every example, so that there is nothing to draw",
                "adaptive": "follows the noise of examples drawn evenly",
            }
            raise SettingError(
                f"sampling importance with batch size {self.batch_size}, which "
                f"{why[str(self.batch_size)]}: give a number, or leave one of them out"
            )

    @property
    def has_constant_rate(self) -> bool:
        """Whether neither warm-up nor schedule changes the learning rate."""
        return self.lr_schedule == "constant" and not self.warmup

    @property
    def is_adaptive(self) -> bool:
        """Whether the optimizer divides gradients by the root of their mean squares, or the like.

        All but SGD: their best rates go as √B, not by the noise of the plain gradient.
        """
        return self.optimizer != "sgd"

    @property
    def optimizer_kind(self) -> Literal["sgd", "momentum", "adaptive"]:
        """Which of three kinds the optimizer is of, which a calibration tells apart."""
        if self.is_adaptive:
            return "adaptive"
        return "momentum" if self.momentum else "sgd"

    @property
    def second_moment_decay(self) -> float | None:
        """β₂ in use; None of SGD."""
        return BETA2.get(self.optimizer) if self.beta2 is None else self.beta2

    def at_rate(self, learning_rate: float) -> TrainConfig:
        """The same training at a constant learning rate, as at one of its updates.

        Args:
            learning_rate: at that update.
        """
        adaptive = self.adaptive and dataclasses.replace(self.adaptive, lr_scaling="none")
        return dataclasses.replace(
            self,
            learning_rate=learning_rate,
            warmup=0.0,
            lr_schedule="constant",
            decay_share=DECAY_SHARE,
            adaptive=adaptive,
        )

    def drawn_evenly(self) -> TrainConfig:
        """The same training on shuffled examples."""
        return dataclasses.replace(self, sampling="shuffle", sampling_floor=SAMPLING_FLOOR)

    @property
    def seed_of_order(self) -> int:
        """What the order of the examples is drawn from."""
        return self.seed if self.order_seed is None else self.order_seed

    @property
    def constant_sgd_rate(self) -> float | None:
        """The learning rate of plain SGD where it stays what it is; None of any other training."""
        scales = self.adaptive is not None and self.adaptive.lr_scaling != "none"
        changes = scales or not self.has_constant_rate
        plain = self.optimizer == "sgd" and not self.momentum
        return self.learning_rate if plain and not changes else None

    def optimizer_settings(self) -> dict[str, Any]:
        """The fields that say how examples become an update, apart from their number and the rate.

        Those which earlier releases do not know only where they differ from their defaults.
        """
        changed = self.changed()
        later = (name for name in (*OF_OPTIMIZER_LATER, *OF_SAMPLING) if name in changed)
        names = (*OF_OPTIMIZER, *later)
        return {name: getattr(self, name) for name in names}

    @classmethod
    def stored_defaults(cls) -> dict[str, Any]:
        """The stored fields at their defaults, the adaptive ones among them rather than nested."""
        defaults = super().stored_defaults()
        del defaults["adaptive"]
        return defaults | ADAPTIVE_DEFAULTS

    def to_dict(self) -> dict[str, Any]:
        """The fields as stored in JSON: the adaptive ones among them, at defaults where unused."""
        fields = dataclasses.asdict(self)
        return fields | (fields.pop("adaptive") or ADAPTIVE_DEFAULTS)

    @classmethod
    def from_known(cls, values: dict[str, Any]) -> Self:
        """The configuration from stored fields, as `to_dict` gives them.

        Args:
            values: fields by name; those missing are at their defaults.

        Raises:
            SettingError: for adaptive settings, other than their defaults, of a fixed batch size.
        """
        adaptive = {name: value for name, value in values.items() if name in ADAPTIVE_DEFAULTS}
        others = {name: value for name, value in values.items() if name not in ADAPTIVE_DEFAULTS}
        if others.get("batch_size") == "adaptive":
            return cls(**others, adaptive=AdaptiveConfig(**adaptive))
        for name, value in adaptive.items():
            if value != ADAPTIVE_DEFAULTS[name]:
                raise SettingError(
                    f"{name.replace('_', ' ')} {value!r}, batch size "
                    f"{others.get('batch_size', 32)}: only an adaptive batch size takes it"
                )
        return cls(**others)


def resolve_batch_size(config: TrainConfig, num_examples: int) -> int:
    """The examples per update, at first; SettingError for a batch larger than the training set."""
    if config.batch_size == "full":
        return num_examples
    if config.batch_size == "adaptive":
        assert config.adaptive is not None
        initial = config.adaptive.initial_batch_size
        largest = max(config.adaptive.max_batch_size or 0, initial)
        if largest > num_examples:
            raise SettingError(
                f"batch sizes up to {largest}: there are {num_examples} training examples; "
                f"give {num_examples} at most"
            )
        return initial
    if config.batch_size > num_examples:
        raise SettingError(
            f"batch size {config.batch_size}: there are {num_examples} training examples; "
            f"give 1 to {num_examples}, or full for all of them"
        )
    return config.batch_size


def stable_sharpness(config: TrainConfig) -> float | None:
    """The λ_max above which gradient descent with this rate leaves a minimum.

    2(1+m)/η − w, for the learning rate η, the heavy-ball momentum m of SGD and the weight decay w,
    which adds itself to every eigenvalue of the loss's Hessian. A statement about full batches and
    mean losses (Cohen et al. 2021, arXiv 2103.00065).

    Args:
        config: how the model is trained.

    Returns:
        The limit, in units of loss per squared unit of parameters. None for adaptive optimizers,
        whose preconditioner the Hessian's eigenvalues leave out, for Nesterov's momentum, and where
        the weight decay alone is beyond the limit.

    Examples:
        >>> from noisescale import TrainConfig, stable_sharpness
        >>> stable_sharpness(TrainConfig(learning_rate=0.1))
        20.0
    """
    limit = limit_of_heavy_ball(
        config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
    return limit if config.optimizer == "sgd" and not config.nesterov and limit > 0 else None


def check_of_study(training: TrainConfig, *, any_sampling: bool = False) -> None:
    """SettingError for what the runs of a study have not: a rate that changes, mixed precision.

    Args:
        training: of all of them.
        any_sampling: whether they may draw their examples by importance.
    """
    if training.sampling != "shuffle" and not any_sampling:
        raise SettingError(
            f"sampling {training.sampling}: train and critical-batch take it, other studies are of "
            "examples drawn evenly; leave it out"
        )
    if not training.has_constant_rate or training.amp is not None:
        raise SettingError(
            "the runs of a study have a constant learning rate and full precision: leave warmup, "
            "lr_schedule and amp out of their training"
        )


def _as_floats(config: object, *names: str) -> None:
    """Makes 1 and 1.0 one configuration with one key."""
    for name in names:
        if is_real(getattr(config, name)):
            with suppress(OverflowError):  # which the check of its range refuses
                object.__setattr__(config, name, float(getattr(config, name)))
