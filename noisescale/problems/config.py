"""What a run is, as plain data: the problem it solves and how it is trained."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, Self, get_args

from noisescale.errors import SettingError

DatasetName = Literal["mnist", "fashion-mnist", "digits"]
PixelScale = Literal["unit", "raw"]
ModelName = Literal["mlp", "cnn"]
Norm = Literal["none", "layer", "batch"]
LossName = Literal["cross_entropy", "mse"]
OptimizerName = Literal["sgd", "adam", "adamw"]
BatchRule = Literal["full", "adaptive"]
LrScaling = Literal["none", "sqrt", "linear", "noise"]

# what only an adaptive batch size takes
ADAPTIVE = (
    "exchange_rate",
    "initial_batch_size",
    "min_batch_size",
    "max_batch_size",
    "hysteresis",
    "noise_memory",
    "lr_scaling",
)
LARGEST = 3e38  # what float32 parameters can be multiplied by


@dataclass(frozen=True)
class _Config:
    """Reading and writing shared by the configurations."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The configuration stored in `values`; fields it lacks take their defaults.

        Raises SettingError (a ValueError) for a field this version does not know.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(values) - known):
            raise SettingError(
                f"{cls.__name__} has no field {', '.join(unknown)}: was it written by a newer noisescale?"
            )
        return cls(**values)


@dataclass(frozen=True, kw_only=True)
class ProblemConfig(_Config):
    """Which data and which model.

    dataset: "mnist", "fashion-mnist" or "digits".
    pixel_scale: "unit" divides the pixels by their largest value before standardising, "raw" does not, as
        in the three-case study, whose inputs were (x − 0.1307)/0.3081 with x in 0…255.
    num_train: train on a random subset of so many examples, the same one for every seed; None: on all.
    model: "mlp" or "cnn".
    width: hidden units of the MLP or channels of the CNN's first block; None: the model's own (1024, 32).
    depth: hidden layers of the MLP or convolution blocks of the CNN; None: the model's own (2, 2).
    norm: the normalisation before each activation.
    loss: "cross_entropy", in nats; or "mse", ½ Σ_c (output_c − target_c)² with the class as a one-hot target.
    """

    dataset: DatasetName = "mnist"
    pixel_scale: PixelScale = "unit"
    num_train: int | None = None
    model: ModelName = "mlp"
    width: int | None = None
    depth: int | None = None
    norm: Norm = "none"
    loss: LossName = "cross_entropy"

    def __post_init__(self) -> None:
        _check_choice("dataset", self.dataset, get_args(DatasetName))
        _check_choice("pixel scale", self.pixel_scale, get_args(PixelScale))
        _check_choice("model", self.model, get_args(ModelName))
        _check_choice("norm", self.norm, get_args(Norm))
        _check_choice("loss", self.loss, get_args(LossName))
        for name in ("num_train", "width", "depth"):
            if getattr(self, name) is not None:
                _check_count(name.replace("_", " "), getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class FactoryConfig(_Config):
    """A problem of the user's own.

    factory: "module:function" or "path/to/file.py:function", see `noisescale.problems.problem.load_problem`.
    source: digest of the file it is defined in, so that runs of an older version are not taken for its own.
    """

    factory: str
    source: str


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_Config):
    """How to train.

    batch_size: examples per update, "full" for gradient descent on all of them, or "adaptive": B =
        √(r·B_simple) with the noise scale measured from the very gradients of training
        (`noisescale.training.adaptive_batch`).
    learning_rate: of the update on the *mean* loss of the batch; constant, unless lr_scaling says otherwise.
    optimizer: "sgd", "adam" or "adamw"; momentum is SGD's (heavy ball) alone.
    weight_decay: as torch.optim defines it for that optimizer.
    epochs, max_steps: training ends at whichever comes first.
    seed: of the initial parameters and of the order of the examples.

    The rest is for an adaptive batch size alone:
    exchange_rate: r, how many examples one would spend to save a step.
    initial_batch_size, min_batch_size, max_batch_size: where it starts, and its bounds; None: 4,096, or all
        training examples where there are fewer.
    hysteresis: it changes once it is wrong by this factor.
    noise_memory: examples after which an update's weight in the running B_simple has fallen to 1/e.
    lr_scaling: how the learning rate follows: "none", "sqrt", "linear" or "noise".
    """

    batch_size: int | BatchRule = 32
    learning_rate: float = 0.01
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    epochs: int = 5
    max_steps: int | None = None
    seed: int = 0
    exchange_rate: float = 1000.0
    initial_batch_size: int = 32
    min_batch_size: int = 8
    max_batch_size: int | None = None
    hysteresis: float = 1.25
    noise_memory: int = 20_000
    lr_scaling: LrScaling = "none"

    def __post_init__(self) -> None:
        for name in ("learning_rate", "momentum", "weight_decay", "exchange_rate", "hysteresis"):
            if _is_real(getattr(self, name)):  # 1 and 1.0 are one configuration with one key
                object.__setattr__(self, name, float(getattr(self, name)))
        if self.batch_size not in get_args(BatchRule):
            _check_count("batch size", self.batch_size, instead=', "full" or "adaptive"')
        _check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        if not (_is_real(self.learning_rate) and 0 < self.learning_rate <= LARGEST):
            raise SettingError(
                f"learning rate {self.learning_rate!r}: give a number above 0 and below 3e38, such as 0.01"
            )
        if not (_is_real(self.momentum) and 0 <= self.momentum < 1):
            raise SettingError(f"momentum {self.momentum!r}: give a number in [0, 1), such as 0.9")
        if self.momentum and self.optimizer != "sgd":
            raise SettingError(f"momentum {self.momentum!r} with {self.optimizer}: only sgd takes a momentum")
        if not (_is_real(self.weight_decay) and 0 <= self.weight_decay <= LARGEST):
            raise SettingError(f"weight decay {self.weight_decay!r}: give a number of 0 or above, below 3e38")
        _check_count("epochs", self.epochs)
        if self.max_steps is not None:
            _check_count("max steps", self.max_steps)
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise SettingError(f"seed {self.seed!r}: give a whole number from 0 to 2**63 - 1")
        self._check_adaptive()

    def optimizer_settings(self) -> dict[str, Any]:
        """The fields that say how a gradient becomes an update, but for the rate."""
        return {name: getattr(self, name) for name in ("optimizer", "momentum", "weight_decay")}

    def _check_adaptive(self) -> None:
        """SettingError for what contradicts itself, or is set though the batch size is not adaptive."""
        if self.batch_size != "adaptive":
            defaults = {field.name: field.default for field in dataclasses.fields(self)}
            for name in ADAPTIVE:
                if getattr(self, name) != defaults[name]:
                    raise SettingError(
                        f"{name.replace('_', ' ')} {getattr(self, name)!r}, batch size {self.batch_size}: "
                        "only an adaptive batch size takes it"
                    )
            return
        _check_choice("lr scaling", self.lr_scaling, get_args(LrScaling))
        for name in ("initial_batch_size", "min_batch_size", "max_batch_size", "noise_memory"):
            if name != "max_batch_size" or self.max_batch_size is not None:
                _check_count(name.replace("_", " "), getattr(self, name))
        if self.noise_memory > LARGEST:
            raise SettingError(f"noise memory {self.noise_memory}: give a number of examples below 3e38")
        if not (_is_real(self.exchange_rate) and 0 < self.exchange_rate <= LARGEST):
            raise SettingError(
                f"exchange rate {self.exchange_rate!r}: give the examples worth a step, a number above 0"
            )
        if not (_is_real(self.hysteresis) and 1 < self.hysteresis <= LARGEST):
            raise SettingError(f"hysteresis {self.hysteresis!r}: give a factor above 1, such as 1.25")
        largest = math.inf if self.max_batch_size is None else self.max_batch_size
        if not 2 <= self.min_batch_size <= self.initial_batch_size <= largest:
            raise SettingError(
                f"batch sizes from {self.min_batch_size} by way of {self.initial_batch_size} to "
                f"{self.max_batch_size or 'the default'}: give 2 <= smallest <= initial <= largest"
            )


def run_key(*configs: ProblemConfig | FactoryConfig | TrainConfig) -> str:
    """Eight hex digits that name a run: a hash of every field that differs from its default.

    Fields at their defaults are left out, so a field added later does not rename the runs made before it.
    """
    changed = {
        f"{type(config).__name__}.{field.name}": getattr(config, field.name)
        for config in configs
        for field in dataclasses.fields(config)
        if getattr(config, field.name) != field.default
    }
    return digest(changed)


def digest(content: dict[str, Any]) -> str:
    """Eight hex digits of plain data."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def run_name(problem: ProblemConfig | FactoryConfig, training: TrainConfig) -> str:
    """A run's default folder name, readable and unique: mnist-mlp-bs32-lr0.01-0123abcd."""
    return (
        f"{problem_name(problem)}-bs{training.batch_size}-lr{training.learning_rate:g}"
        f"-{run_key(problem, training)}"
    )


def problem_name(problem: ProblemConfig | FactoryConfig) -> str:
    """A problem's name in that of a folder: data set and model, or the factory's own."""
    if isinstance(problem, FactoryConfig):
        return problem.factory.rpartition(":")[2]
    return f"{problem.dataset}-{problem.model}"


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingError(f"{name} {value!r}: choose one of {', '.join(allowed)}")


def _check_count(name: str, value: object, *, instead: str = "") -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingError(f"{name} {value!r}: give a whole number of 1 or more{instead}")
