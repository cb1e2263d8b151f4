"""The curvature of a problem's loss at one parameter vector, as one record."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noisescale.errors import MeasurementError, SettingError, StoppedEarly
from noisescale.measure.curvature.batch_sharpness import (
    batch_sharpness,
    gradient_noise_interaction,
)
from noisescale.measure.curvature.eigenpairs import EigenPairs, top_eigenpairs
from noisescale.measure.curvature.keskar import KeskarSharpness, Space, keskar_sharpness
from noisescale.measure.curvature.products import CurvatureProduct, record_ggn, record_hessian
from noisescale.measure.curvature.spectrum import (
    SpectralDensity,
    SpectralMoments,
    spectral_density,
    spectral_moments,
)
from noisescale.measure.objective import Objective, flatten
from noisescale.measure.objective.gradient_field import check_one_function
from noisescale.measure.objective.preconditioner import (
    PreconditionerLike,
    is_optimizer_state,
    read_optimizer_state,
)
from noisescale.measure.sharpness.critical import critical_sharpness
from noisescale.measure.sharpness.eigenvalue import End
from noisescale.measure.sharpness.options import (
    SharpnessOptions,
    check_ends,
    fresh_generator,
    with_seed,
)
from noisescale.measure.sharpness.preconditioned import Geometry
from noisescale.measure.sharpness.result import Sharpness
from noisescale.measure.sharpness.sampling_error import Product, Report, eigenvalues
from noisescale.measure.sharpness.update import UpdateLike, next_update
from noisescale.problems.problem import Examples, Params, Problem, held
from noisescale.problems.sampling import Selection, select
from noisescale.statistics.estimate import Estimate

# In all the batches of batch sharpness together: a gradient and a product of each are about half
# the work of one gradient over MNIST's 60,000
BATCHED_EXAMPLES = 8192
COMPARED = 4  # examples whose gradient's derivative is compared with its differences
FEWEST_BATCHES = 16  # below which their spread would say little of their mean's error
MOST_BATCHES = 256  # beyond which small batches, each a pass of its own, take too long
KESKAR_EPSILONS = (1e-3, 5e-4)  # the two of the paper
# Of each filter's norm: where φ of a trained network is about what the paper's boxes give, and a
# few times beyond, where it still is a neighbourhood
FILTER_EPSILONS = (0.01, 0.05)
# about, for what they cost: of the density 4 probes of 30 steps; of an iteration of
# φ 1.5 gradients in float64, each half as long as a product and twice as long as one in float32
DENSITY_MATVECS = 120
ITERATION_MATVECS = 1.5


def measure_sharpness(
    problem: Problem,
    params: Params | None = None,
    options: SharpnessOptions | None = None,
    *,
    preconditioner: PreconditionerLike | None = None,
    update: UpdateLike | None = None,
    seed: int | None = None,
    start: Sharpness | Mapping[str, Tensor] | None = None,
    report: Report | None = None,
) -> Sharpness:
    """The curvature of the mean loss at `params`, the model in evaluation mode, as one record.

    Args:
        problem: the model, its loss and its examples.
        params: θ by name; None: the model's own.
        options: what to measure, of which examples; None: the largest eigenvalue of the Hessian
            over the training examples.
        preconditioner: P, for λ_max(P^½HP^½) beside λ_max(H), as `preconditioned`, with the limit
            of stability where P is an optimizer's: a positive tensor by parameter's name, an Adam,
            AdamW, RMSprop or the like that trains the model, its state_dict(), or a file of that;
            see `preconditioner_of`. None: no such curvature.
        update: what critical sharpness goes along: the next step of an optimizer that trains the
            model, given as it is or by its state_dict(), or the step itself, a tensor by
            parameter. None: that of `preconditioner` where it is an optimizer, else the gradient.
        seed: of the subset and of every random start, batch and probe. None: that of the options,
            which is 0 by default.
        start: an earlier checkpoint's measurement, whose eigenvectors the searches start from; or
            its `starts` alone.
        report: is told what is being computed, at every product.

    Returns:
        The quantities that the options name.

    Raises:
        SettingError: an unknown split, more examples than it has, more eigenvalues than there are
            parameters, or another bad option; a seed that is not the one the options give; an
            optimizer of other parameters, or one of which no P is known.
        CheckpointError: an optimizer's file that cannot be read.
        MeasurementError: parameters, loss or gradient that are not finite, or a loss without a
            second derivative.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, SharpnessOptions, measure_sharpness
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> measure_sharpness(problem)
        Hessian of the mean loss over all 1,297 train examples, loss 2.311
          λ_max  0.50099 (exact)
        >>> options = SharpnessOptions(top=2, trace=True, num_examples=500)
        >>> measure_sharpness(problem, options=options)
        Hessian of the mean loss over 500 of 1,297 train examples, loss 2.319
          λ_max                   0.566 ± 0.044 (0.481–0.666)
          λ_max (2)               0.489 ± 0.035 (0.419–0.567)
          trace                   3.19 ± 0.67 (1.67–4.72)
          squared Frobenius norm  6.10 ± 0.18 (5.68–6.51)
    """
    options = with_seed(options or SharpnessOptions(), seed)
    if isinstance(preconditioner, str | Path):
        preconditioner = read_optimizer_state(Path(preconditioner))
    report = report or (lambda activity: None)
    (_, indices, population_size), objective = sharpness_objective(problem, params, options)
    check_ends(options, objective)
    if update is not None and not options.critical:
        raise SettingError(
            "an update without critical sharpness, which alone goes along it: give critical=True, "
            "or leave it out"
        )
    operator = CurvatureProduct(objective, record_ggn if options.ggn else record_hessian)
    tally = _Tally(report)
    geometry = (
        None if preconditioner is None else Geometry.of(preconditioner, problem.model, operator)
    )

    report("loss and gradient")
    loss, gradient = objective.value_and_gradient()
    if not (math.isfinite(loss) and gradient.isfinite().all()):
        raise MeasurementError(_say_not_finite(objective, loss, indices))
    if update is None and isinstance(preconditioner, Optimizer | Mapping):
        update = preconditioner if _is_optimizer(preconditioner) else None
    step: _NextStep | None = None
    if options.critical:
        step = _NextStep.of(objective, problem.model, gradient, update)
    if not options.ggn:
        _check_one_function(problem, params, objective, options)
    starts = start.starts if isinstance(start, Sharpness) else start or {}
    pairs = _eigenpairs(operator, options, starts, tally)
    sharpness = Sharpness(
        split=options.split,
        num_examples=objective.num_examples,
        population_size=population_size,
        matrix="ggn" if options.ggn else "hessian",
        amp=options.amp,
        loss=loss,
        gradient_norm=float(gradient.double().norm()),
        eigenvalues=eigenvalues(pairs, operator, population_size, options, report),
        moments=None,
        density=None,
        phi=(),
        batch_size=options.batch_size,
        batch_sharpness=None,
        gradient_noise_interaction=None,
        num_matvecs=tally.num_matvecs,
        pairs=dict(pairs.items()),
        notes=objective.notes,
    )
    try:
        if step is not None:
            report("critical sharpness")
            critical = critical_sharpness(objective, step.change, start=step.rate)
            sharpness = replace(sharpness, critical=critical)
        if geometry is not None:
            sharpness = _with_preconditioned(sharpness, geometry, options, starts, tally)
        batch, interaction = _batch_quantities(operator, options, tally)
        sharpness = replace(
            sharpness, batch_sharpness=batch, gradient_noise_interaction=interaction
        )
        _announce(options, tally)
        moments, density = _spectrum(operator, options, tally)
        sharpness = replace(sharpness, moments=moments, density=density)
        if options.phi or options.filter_normalised:
            sharpness = replace(sharpness, phi=_keskar(problem, params, objective, options, report))
    except KeyboardInterrupt as interrupt:
        note = "stopped by Ctrl-C: what was still to be measured is missing"
        raise StoppedEarly(replace(sharpness, notes=(*sharpness.notes, note))) from interrupt
    return replace(sharpness, num_matvecs=tally.num_matvecs)


def _announce(options: SharpnessOptions, tally: _Tally) -> None:
    """Says what the spectrum and φ will cost, by what the products so far have taken."""
    products = {
        "the trace": options.trace * options.trace_matvecs,
        "the density": options.density * DENSITY_MATVECS,
        "φ": phi_searches(options) * options.phi_iterations * ITERATION_MATVECS,
    }
    wanted = [name for name, number in products.items() if number]
    if not (wanted and tally.num_matvecs):
        return
    spent = time.perf_counter() - tally.begun
    to_come = spent / tally.num_matvecs * sum(products.values())
    tally.report(
        f"Optional, {' and '.join(wanted)}: about {to_come:.0f} s, "
        f"{to_come / (to_come + spent):.0%} of the whole. Ctrl-C prints the result without the "
        "rest of it."
    )


def sharpness_objective(
    problem: Problem, params: Params | None, options: SharpnessOptions
) -> tuple[Selection, Objective]:
    """The random subset that is measured on, and the mean loss over it."""
    selected = select(
        problem,
        split=options.split,
        num_examples=options.num_examples,
        generator=fresh_generator(options),
    )
    objective = Objective(
        problem,
        params,
        examples=held(selected.examples),
        dtype=options.dtype,
        param_filter=options.param_filter,
        amp=options.amp,
    )
    return selected, objective


def _say_not_finite(objective: Objective, loss: float, indices: Tensor) -> str:
    """What is not finite, and of which example of the split, in a sentence."""

    def is_broken(part: Examples) -> bool:
        value, gradient = objective.part(part).value_and_gradient()
        return not (math.isfinite(value) and bool(gradient.isfinite().all()))

    index = int(indices[objective.first_broken(is_broken)])
    if not math.isfinite(loss):
        return f"{objective.name} is {loss} at these parameters (first at index {index})"
    return (
        f"{objective.name} has a gradient that is not finite at these parameters (first at index "
        f"{index}), as where a square root is taken of zero"
    )


def _check_one_function(
    problem: Problem, params: Params | None, objective: Objective, options: SharpnessOptions
) -> None:
    """MeasurementError where the gradient is not that of one function, by a few examples."""
    few = objective.examples.part(slice(COMPARED))
    if not objective.has_weight(few):
        return
    precise = Objective(
        problem,
        params,
        examples=few,
        dtype=torch.float64,
        param_filter=options.param_filter,
    )
    try:
        precise.check_separate()
    except MeasurementError:  # a model that fixes its dtypes takes no float64
        return
    check_one_function(precise, CurvatureProduct(precise, record_hessian))


def _is_optimizer(given: Optimizer | Mapping[str, Any]) -> bool:
    return isinstance(given, Optimizer) or is_optimizer_state(given)


@dataclass(frozen=True)
class _NextStep:
    """What critical sharpness goes along, and the learning rate in use.

    change: Δ (P,); None: the gradient. rate: None where it is not known.
    """

    change: Tensor | None = None
    rate: float | None = None

    @classmethod
    def of(
        cls, objective: Objective, model: nn.Module, gradient: Tensor, update: UpdateLike | None
    ) -> _NextStep:
        """That of an update; SettingError for one of which it is not known."""
        if update is None:
            return cls()
        params = objective.unflatten(objective.point)
        change = next_update(update, model, params, objective.unflatten(gradient))
        rate = None
        if _is_optimizer(update):
            groups = (
                update.param_groups if isinstance(update, Optimizer) else update["param_groups"]
            )
            rate = max(float(group.get("lr", 0.0)) for group in groups) or None
        return cls(flatten(list(change.values())), rate)


class _Tally:
    """How many products a measurement has taken; each is reported under what it is for."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.num_matvecs = 0
        self.begun = time.perf_counter()

    def add(self, activity: str) -> None:
        self.num_matvecs += 1
        self.report(f"{activity} (product {self.num_matvecs})")


@dataclass(frozen=True)
class _Counted:
    """An operator whose products are counted, and reported as part of an activity."""

    operator: Product
    activity: str
    tally: _Tally

    @property
    def dim(self) -> int:
        return self.operator.dim

    @property
    def dtype(self) -> torch.dtype:
        return self.operator.dtype

    @property
    def device(self) -> torch.device:
        return self.operator.device

    @property
    def coarsest_dtype(self) -> torch.dtype:
        return self.operator.coarsest_dtype

    def __call__(self, vector: Tensor) -> Tensor:
        self.tally.add(self.activity)
        return self.operator(vector)


def _eigenpairs(
    operator: Product, options: SharpnessOptions, starts: Mapping[str, Tensor], tally: _Tally
) -> dict[End, EigenPairs]:
    """The eigenpairs of each end that the options want, from those of `starts` where it has any."""
    ends: tuple[tuple[End, int], ...] = (("largest", options.top), ("smallest", options.bottom))
    return {
        which: _search(
            _Counted(operator, f"{which} eigenvalue", tally),
            options,
            k=k,
            which=which,
            start=starts.get(which),
        )
        for which, k in ends
        if k
    }


def _with_preconditioned(
    sharpness: Sharpness,
    geometry: Geometry,
    options: SharpnessOptions,
    starts: Mapping[str, Tensor],
    tally: _Tally,
) -> Sharpness:
    """The measurement with λ_max(P^½HP^½), and what the next search for it starts from."""
    pairs = _search(
        _Counted(geometry.product, "largest preconditioned eigenvalue", tally),
        options,
        k=1,
        which="largest",
        start=starts.get("preconditioned"),
    )
    (largest,) = eigenvalues(
        {"largest": pairs}, geometry.product, sharpness.population_size, options, tally.report
    )
    return replace(
        sharpness,
        preconditioned=geometry.sharpness(largest),
        pairs=sharpness.pairs | {"preconditioned": pairs},
    )


def _search(
    operator: _Counted, options: SharpnessOptions, *, k: int, which: End, start: Tensor | None
) -> EigenPairs:
    """The k eigenpairs of one end, as precisely as the options want."""
    return top_eigenpairs(
        operator,
        k=k,
        which=which,
        method=options.method,
        rtol=options.rtol,
        max_matvecs=options.max_matvecs,
        start=start,
        generator=fresh_generator(options),
    )


def _spectrum(
    operator: CurvatureProduct, options: SharpnessOptions, tally: _Tally
) -> tuple[SpectralMoments | None, SpectralDensity | None]:
    """Trace with Frobenius norm, and density, where the options want them."""
    moments = density = None
    if options.trace:
        moments = spectral_moments(
            _Counted(operator, "trace", tally),
            num_matvecs=options.trace_matvecs,
            generator=fresh_generator(options),
        )
    if options.density:
        density = spectral_density(
            _Counted(operator, "density", tally), generator=fresh_generator(options)
        )
    return moments, density


def _batch_quantities(
    operator: CurvatureProduct, options: SharpnessOptions, tally: _Tally
) -> tuple[Estimate | None, Estimate | None]:
    """Batch sharpness and gradient–noise interaction, where the options want them.

    They draw their batches from one generator, one after the other.
    """
    if options.batch_size is None:
        return None, None
    tally.report("batch sharpness")
    objective = operator.objective
    generator = fresh_generator(options)
    num_batches = options.num_batches
    if num_batches is None:
        enough = max(BATCHED_EXAMPLES // options.batch_size, FEWEST_BATCHES)
        num_batches = min(enough, MOST_BATCHES)
    sharpness = batch_sharpness(
        objective, batch_size=options.batch_size, num_batches=num_batches, generator=generator
    )
    if not options.interaction_batches:
        return sharpness, None
    hessian = CurvatureProduct(objective, record_hessian) if options.ggn else operator
    interaction = gradient_noise_interaction(
        objective,
        _Counted(hessian, "gradient-noise interaction", tally),
        batch_size=options.batch_size,
        num_batches=options.interaction_batches,
        generator=generator,
    )
    return sharpness, interaction


def _keskar(
    problem: Problem,
    params: Params | None,
    objective: Objective,
    options: SharpnessOptions,
    report: Report,
) -> tuple[KeskarSharpness, ...]:
    """φ in the spaces that the options want, for two ε each."""
    precise = Objective(
        problem,
        params,
        examples=objective.examples,
        dtype=torch.float64,
        param_filter=options.param_filter,
    )
    results = []
    for space, epsilons in _phi_boxes(options).items():
        for epsilon in epsilons:
            report(f"φ, {space} space, ε = {epsilon:g}")
            results.append(
                keskar_sharpness(
                    precise,
                    space=space,
                    epsilon=epsilon,
                    max_iterations=options.phi_iterations,
                    seed=options.seed,
                )
            )
    return tuple(results)


def _phi_boxes(options: SharpnessOptions) -> dict[Space, tuple[float, ...]]:
    """The ε of each space that the options want φ in."""
    boxes: dict[Space, tuple[float, ...]] = {}
    if options.phi:
        boxes |= {"full": KESKAR_EPSILONS, "random": KESKAR_EPSILONS}
    if options.filter_normalised:
        boxes["filter"] = FILTER_EPSILONS
    return boxes


def phi_searches(options: SharpnessOptions) -> int:
    """How many maximisations that makes."""
    return sum(map(len, _phi_boxes(options).values()))
