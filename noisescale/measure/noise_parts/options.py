"""What a measurement of the gradient noise is of, and what does not go together in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import torch

from noisescale.errors import SettingError, check_choice, check_count
from noisescale.measure.gradients.engine import EngineName
from noisescale.problems.config import Amp
from noisescale.problems.problem import Problem
from noisescale.statistics.display import Settings
from noisescale.statistics.sample import Population

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Geometry = Literal["plain", "optimizer", "both"]
Options = TypeVar("Options", bound="DataclassInstance")  # of a measurement, all with defaults
HESSIAN_EXAMPLES = 4096  # a compromise: each probe and eigenvector costs a product on all of them


@dataclass(frozen=True, kw_only=True, repr=False)
class NoiseOptions(Settings):
    """What to measure of the gradient noise, and on which examples.

    Attributes:
        split: of the problem's examples: "train", "validation" or "test".
        population: "dataset", noise about the mean gradient of the split's N examples (Σ with 1/N),
            or "distribution", about that of fresh examples. None: dataset for "train", else
            distribution.
        num_examples: size of the random subset of the split; None: all of it.
        hessian: whether to measure tr(HΣ), GᵀHG, B_noise and ε_max as well.
        num_probes: noise probes for these, a Hessian product each, or a quarter of one where the
            memory does not hold the graphs of all of H's examples.
        hessian_examples: on which H is taken; None: 4,096, at most half of the split. For a data
            set these are drawn independently of the gradients' examples; for a distribution they
            are others, taken from the gradients' where the split has no more.
        per_layer: whether to give a row for each parameter tensor.
        per_class: whether to give a row for each class of the target.
        anatomy: whether to say who carries tr Σ, see `NoiseAnatomy`: at about the price of two
            gradients more where the targets are classes.
        engine: how per-example gradients are computed, see `gradient_moments`.
        chunk_size: examples at a time, None: as many as the memory holds.
        dtype: in which to compute, None: the parameters' own.
        amp: "bf16": the model runs under torch.autocast, its matrix products in bfloat16, and
            statistics are float32 and float64 all the same. None: it does not.
        augmentations: K draws of each example, of a Dataset whose items change from read to read.
            The split is then made of K·N examples, of which num_examples are a random subset: tr Σ
            is of examples and draws together, and |G|² of a gradient averaged over K draws, which
            exceeds that over all draws by 1/(K·N) of what tr Σ owes to them. For the population
            "distribution" one draw of each is a sample of fresh examples under fresh draws already,
            and more would not be independent.
        param_filter: names of parameters, or patterns as "head.*", whose gradients these are; the
            others are constants. None: all.
        geometry: under a preconditioner, the coordinates in which `hessian` is measured: "plain",
            "optimizer", for half the Hessian products of "both". None: both. Along a run, see
            `NoiseTracking`, of which scales there are columns.
        sign: whether to measure B_ℓ1 = ‖σ‖₁²/‖G‖₁², the noise scale of descent along the sign of
            the gradient, see `sign_noise`: a further pass, for which most models' gradients are
            written out, in the memory of 16 gradients in float64.

    Raises:
        SettingError: another geometry than these.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, NoiseOptions, measure_noise
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> options = NoiseOptions(split="test", per_layer=True)
        >>> measure_noise(problem, options=options).per_layer["parameter"].tolist()
        ['1.weight', '1.bias', '3.weight', '3.bias', '5.weight', '5.bias']
    """

    split: str = "train"
    population: Population | None = None
    num_examples: int | None = None
    hessian: bool = False
    num_probes: int = 32
    hessian_examples: int | None = None
    per_layer: bool = False
    per_class: bool = False
    anatomy: bool = False
    engine: EngineName = "auto"
    chunk_size: int | None = None
    dtype: torch.dtype | None = None
    amp: Amp | None = None
    augmentations: int = 1
    param_filter: tuple[str, ...] | None = None
    geometry: Geometry | None = None
    sign: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.geometry is not None:
            check_choice("geometry", self.geometry, get_args(Geometry))
        check_count("num probes", self.num_probes)


def with_settings(options: Options, settings: Mapping[str, Any]) -> Options:
    """`options` with the settings given beside them; SettingError for one given both ways."""
    default = type(options)()
    twice = [
        name for name in settings if getattr(options, name, None) != getattr(default, name, None)
    ]
    if twice:
        raise SettingError(
            f"{', '.join(twice)}: given in the options and beside them; give it once"
        )
    return replace(options, **settings)


def check_options(problem: Problem, options: NoiseOptions, *, has_preconditioner: bool) -> None:
    """SettingError for options that do not go together, or not with the problem."""
    if options.augmentations != 1 and population_of(options) == "distribution":
        raise SettingError(
            f"augmentations {options.augmentations} with the population distribution: one draw of "
            "each example is a sample of it already; leave it at 1"
        )
    if options.anatomy and problem.weights is not None:
        raise SettingError(
            "anatomy of a problem with weights: it is not known what importance sampling leaves of "
            "its noise; leave it out, or the weights"
        )
    if not has_preconditioner and options.geometry in ("optimizer", "both"):
        raise SettingError(
            f"geometry {options.geometry} without a preconditioner: give one, or leave it out"
        )


def hessian_sample_size(population_size: int) -> int:
    """How many examples H is taken on unless it is said."""
    return max(min(HESSIAN_EXAMPLES, population_size // 2), 2)  # fewer have no error


def population_of(options: NoiseOptions) -> Population:
    """The population that is asked for, or else that of the split."""
    of_split: Population = "dataset" if options.split == "train" else "distribution"
    return options.population or of_split
