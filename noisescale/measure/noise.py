"""The noise of a problem's gradient at one parameter vector, as one record."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from noisescale.errors import SettingError, StoppedEarly
from noisescale.measure.gradients.moments import (
    GradientMoments,
    MetricMoments,
    check_modes,
    moments_on,
)
from noisescale.measure.noise_parts.anatomy import measure_anatomy
from noisescale.measure.noise_parts.classes import check_classes, measure_classes
from noisescale.measure.noise_parts.fold_sums import check_enough, measure_sign
from noisescale.measure.noise_parts.options import (
    NoiseOptions,
    check_options,
    hessian_sample_size,
    population_of,
    with_settings,
)
from noisescale.measure.noise_parts.probes import probe_curvature
from noisescale.measure.objective import Objective, flatten
from noisescale.measure.objective.preconditioner import (
    PreconditionerLike,
    by_leaf,
    preconditioner_of,
)
from noisescale.problems.problem import Params, Problem, Source, held, units_per_example
from noisescale.problems.sampling import Selection, select, split_source
from noisescale.statistics.gradient_noise import (
    NoiseScale,
    SignNoise,
    mean_estimate,
    noise_scale,
)
from noisescale.statistics.hessian_noise import CurvatureNoise
from noisescale.statistics.sample import Sample, excess, squared_deviations

if TYPE_CHECKING:
    import pandas as pd


TOP_EXAMPLES = 10  # fit on a screen
NEGLIGIBLE = 100  # units of rounding in |g|², below which a tr Σ is nothing but that


def measure_noise(
    problem: Problem,
    params: Params | None = None,
    options: NoiseOptions | None = None,
    *,
    preconditioner: PreconditionerLike | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
    report: Callable[[str], None] | None = None,
    **settings: Any,
) -> NoiseScale:
    """|G|², tr Σ and B_simple = tr Σ/|G|² at one parameter vector, with their errors.

    G is the gradient of the mean loss, Σ the covariance of the gradients of single examples. Of a
    problem with weights w_i, whose batches' gradients are Σ w_i g_i/Σ w_i, G is that of the whole,
    and Σ the covariance of (w_i/w̄)(g_i − G): to first order in 1/B a batch of B examples has the
    gradient's covariance Σ/B about G, so that B_simple is in examples, not tokens.

    McCandlish et al. 2018 (arXiv 1812.06162), (2.8) and (2.9). See `noise_scale` for the
    estimators.

    An optimizer that multiplies the gradient by a diagonal P, as Adam by 1/(√v̂ + ε), descends in
    the coordinates P^(−½)θ: there gradients are √P g_i, and the Hessian is √P H √P. The noise scale
    that bears on its batch size is therefore B^P_simple = tr(PΣ)/GᵀPG, with P once and not twice,
    and B^P_noise = tr(PHPΣ)/GᵀPHPG; the result's `preconditioned` has them. P is taken for fixed.

    Args:
        problem: the model, its loss per example and its data.
        params: where to measure; None: the model's own parameters.
        options: what to measure, on which examples; None: `NoiseOptions()`.
        preconditioner: P, from the same pass: a dict of tensors by parameter, the optimizer that
            trains the model, its state_dict(), or a file of that; see `preconditioner_of`. None:
            the plain noise scale alone.
        seed: of every random choice: the subset, the Hessian's examples, the probes.
        generator: to draw from instead, on the CPU, going on from its present state.
        report: is told what is being computed.
        **settings: fields of `NoiseOptions` one by one, such as `hessian=True`. A field that
            `options` sets to other than its default cannot be given here again.

    Returns:
        The noise scale, with its parts by layer and class and with B_noise where `options` say so.

    Raises:
        SettingError: an option is out of its range or given twice, or `seed` beside a `generator`.
        MeasurementError: the gradients are not defined or not finite there, as for
            `gradient_moments`.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, measure_noise
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> noise = measure_noise(problem, num_examples=500)
        >>> noise
        Gradient noise over 500 of 1,297 train examples (population: dataset)
          B_simple = tr Σ/|G|²  80.6 ± 8.6 (66.8–102.3)
          mean loss             2.3189 ± 0.0058 (2.3075–2.3302)
          |G|²                  0.0406 ± 0.0046 (0.0315–0.0497)
          tr Σ                  3.271 ± 0.050 (3.173–3.368)
        >>> print(noise.simple)
        80.6 ± 8.6 (66.8–102.3)
    """
    options = with_settings(options or NoiseOptions(), settings)
    check_options(problem, options, has_preconditioner=preconditioner is not None)
    if generator is None:
        generator = torch.Generator().manual_seed(seed)
    elif seed != 0:
        raise SettingError(f"seed {seed} beside a generator: give one of them")
    report = report or _silent
    begun = time.perf_counter()
    measured = _measure_gradients(problem, params, options, preconditioner, generator, report)
    seconds = time.perf_counter() - begun
    moments = measured.moments
    noise = _scale_of(moments, measured)
    notes = [*noise.notes, *moments.notes, *_notes(measured, noise)]
    notes += measured.objective.notes
    units = units_per_example(problem.units, measured.selected.examples)
    noise = replace(
        noise,
        split=options.split,
        engine=moments.engine,
        loss=mean_estimate(moments.losses, measured.sample, moments.weighting),
        top_examples=_top_examples(moments, measured.selected, options.augmentations),
        units_per_example=units,
        amp=measured.options.amp,
        notes=tuple(notes),
        preconditioned=_preconditioned(measured, units),
    )
    try:
        coordinates = _coordinates(measured) if options.hessian else []
        for index, in_metric in enumerate(coordinates):
            if in_metric:
                report("B_noise under the preconditioner")
            curvature = _curvature_noise(
                measured,
                generator,
                seconds,
                report,
                in_metric=in_metric,
                rounds=len(coordinates) if index == 0 else 0,  # one announcement for all
            )
            noise = _with_curvature(noise, curvature, in_metric=in_metric)
        if options.sign:
            report("the noise of the sign")
            noise = replace(noise, sign=_sign_noise(measured, generator))
        if options.per_class or options.anatomy:
            noise = _with_classes(noise, measured, report)
    except KeyboardInterrupt as interrupt:
        note = (
            "stopped by Ctrl-C: what --hessian, --sign, --per-class and --anatomy add is missing, "
            "or a part of it"
        )
        raise StoppedEarly(replace(noise, notes=(*noise.notes, note))) from interrupt
    return noise


def _silent(activity: str) -> None:
    """Reports nothing."""


@dataclass(frozen=True)
class _Measured:
    """The gradients of a sample of a split's examples, and what they are measured with."""

    problem: Problem
    options: NoiseOptions
    selected: Selection
    sample: Sample
    objective: Objective
    moments: GradientMoments
    preconditioner: Params | None  # P by parameter


def noise_objective(
    problem: Problem, params: Params | None, options: NoiseOptions, generator: torch.Generator
) -> tuple[Selection, Objective]:
    """The random subset that is measured on, and the mean loss over it."""
    check_modes(problem.model)
    selected = select(
        problem,
        split=options.split,
        num_examples=options.num_examples,
        generator=generator,
        augmentations=options.augmentations,
    )
    objective = Objective(
        problem,
        params,
        examples=selected.examples,
        dtype=options.dtype,
        chunk_size=options.chunk_size,
        param_filter=options.param_filter,
        amp=options.amp,
    )
    return selected, objective


def _measure_gradients(
    problem: Problem,
    params: Params | None,
    options: NoiseOptions,
    preconditioner: PreconditionerLike | None,
    generator: torch.Generator,
    report: Callable[[str], None],
) -> _Measured:
    """The moments of the per-example gradients of a random subset."""
    selected, objective = noise_objective(problem, params, options, generator)
    if options.sign:
        check_enough(objective)
    diagonal: Params | None = None
    if preconditioner is not None:
        diagonal = by_leaf(preconditioner_of(preconditioner, problem.model), objective.params())
    report("gradients")
    moments = moments_on(
        objective,
        indices=selected.indices,
        population_size=selected.population_size,
        engine=options.engine,
        preconditioner=diagonal,
    )
    sample = Sample(
        num_examples=objective.num_examples,
        population_size=selected.population_size,
        population=population_of(options),
    )
    return _Measured(problem, options, selected, sample, objective, moments, diagonal)


def _preconditioned(measured: _Measured, units: float | None) -> NoiseScale | None:
    """The noise scale of √P g_i, from the same pass; None without a preconditioner."""
    moments = measured.moments
    if moments.preconditioned is None:
        return None
    return replace(
        _scale_of(moments.preconditioned, measured),
        split=measured.options.split,
        engine=moments.engine,
        units_per_example=units,
    )


def _scale_of(moments: GradientMoments | MetricMoments, measured: _Measured) -> NoiseScale:
    """The noise scale by the moments of the gradients, or of the √P g_i."""
    return noise_scale(
        moments.squared_norms,
        moments.projections,
        moments.mean_squares,
        population=measured.sample.population,
        population_size=measured.sample.population_size,
        names=list(measured.moments.mean) if measured.options.per_layer else None,
        weighting=moments.weighting,
    )


def _notes(measured: _Measured, noise: NoiseScale) -> list[str]:
    """What a reader should know of how far the numbers can be trusted."""
    dtype, moments = measured.objective.dtype, measured.moments
    notes = []
    rounding = torch.finfo(dtype).eps * moments.squared_norms.sum(1).mean()
    if noise.gradient_variance.value < NEGLIGIBLE * rounding:
        notes.append(f"tr Σ is no more than {dtype} leaves of |g|²: the gradients are nearly one")
    if noise.per_layer is not None and noise.per_layer["gradient_variance_stderr"].isna().any():
        notes.append(f"the engine {moments.engine} gives no errors per layer; hooks does")
    return notes


def _coordinates(measured: _Measured) -> list[bool]:
    """The coordinates in which H is measured, in turn: whether they are the preconditioner's."""
    geometry = measured.options.geometry or "both"
    plain = [] if geometry == "optimizer" else [False]
    has_metric = measured.preconditioner is not None and geometry != "plain"
    return plain + ([True] if has_metric else [])


def _with_curvature(noise: NoiseScale, curvature: CurvatureNoise, *, in_metric: bool) -> NoiseScale:
    """The noise scale with what was measured of H, in either of its coordinates."""
    if not in_metric:
        return replace(noise, curvature=curvature, notes=(*noise.notes, *curvature.notes))
    assert noise.preconditioned is not None, "the metric is a preconditioner's"
    return replace(
        noise, preconditioned=_with_curvature(noise.preconditioned, curvature, in_metric=False)
    )


def _curvature_noise(
    measured: _Measured,
    generator: torch.Generator,
    seconds: float,
    report: Callable[[str], None],
    *,
    in_metric: bool,
    rounds: int,
) -> CurvatureNoise:
    """B_noise and its parts, with H on examples that are independent of the gradients'.

    in_metric: whether under the preconditioner. rounds: as for `probe_curvature`.
    """
    moments = measured.moments
    on_gradients = excess(
        moments.squared_norms.sum(1), float(moments.mean_squares.sum()), moments.whole_weighting
    )
    metric: Tensor | None = None
    if in_metric and measured.preconditioner is not None and moments.preconditioned is not None:
        metric = flatten(list(measured.preconditioner.values()))
        under = moments.preconditioned
        whole = None if under.weighting is None else under.weighting.total
        on_gradients = excess(under.squared_norms.sum(1), float(under.mean_squares.sum()), whole)
    wanted = _hessian_examples(measured)
    order = torch.randperm(measured.sample.population_size, generator=generator)
    of_gradients = measured.objective
    if measured.sample.population == "distribution":
        order = _unused_first(order, measured.selected.indices)
        of_gradients = _without(measured, order[:wanted])
    examples = _whole_split(measured, generator.initial_seed()).subset(order[:wanted])
    return probe_curvature(
        of_gradients,
        measured.objective.on(held(examples)),
        excess=on_gradients.of_norm,
        sample=measured.sample.of(of_gradients.num_examples),
        num_probes=measured.options.num_probes,
        mean=None if of_gradients is not measured.objective else _flat_mean(measured),
        engine=moments.engine,  # the one that fits the model
        metric=metric,
        generator=generator,
        seconds=seconds,
        rounds=rounds,
        report=report,
    )


def _sign_noise(measured: _Measured, generator: torch.Generator) -> SignNoise:
    """The noise in the geometry of sign descent."""
    return measure_sign(
        measured.objective,
        mean=flatten(list(measured.moments.mean.values())),
        engine=measured.moments.engine,
        sample=measured.sample,
        generator=generator,
    )


def _flat_mean(measured: _Measured) -> Tensor:
    """The mean gradient ḡ (P,)."""
    return flatten(list(measured.moments.mean.values())).to(measured.objective.point)


def _hessian_examples(measured: _Measured) -> int:
    """On how many examples H is taken; SettingError where the split has too few to spare."""
    size, wanted = measured.sample.population_size, measured.options.hessian_examples
    if wanted is None:
        wanted = hessian_sample_size(size)
    is_dataset = measured.sample.population == "dataset"
    largest = size if is_dataset else size - 4
    if not 2 <= wanted <= largest:
        raise SettingError(
            f"hessian examples {wanted}: the {measured.options.split} split has {size}; "
            f"give 2 to {largest}"
            + ("" if is_dataset else ", which leaves 4 others for the gradients")
        )
    return wanted


def _unused_first(order: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """A permutation of the split with those in front that no gradient was measured of."""
    used = torch.zeros(len(order), dtype=torch.bool)
    used[indices] = True
    return torch.cat([order[~used[order]], order[used[order]]])


def _without(measured: _Measured, of_hessian: torch.Tensor) -> Objective:
    """The gradients' objective without the Hessian's examples."""
    objective, examples = measured.objective, measured.selected.examples
    kept = ~torch.isin(measured.selected.indices, of_hessian)  # (n,)
    if kept.sum() < 4:
        raise SettingError(
            f"{measured.sample.num_examples} examples: B_noise takes at least 4 beside those of "
            "the Hessian"
        )
    if kept.all():
        return objective
    return objective.on(examples.subset(kept))


def _whole_split(measured: _Measured, seed: int) -> Source:
    """All examples that those measured were chosen from."""
    options = measured.options
    return split_source(
        measured.problem, options.split, seed=seed, augmentations=options.augmentations
    )


def _with_classes(
    noise: NoiseScale, measured: _Measured, report: Callable[[str], None]
) -> NoiseScale:
    """The noise scale with what is measured class by class: each class's own, and the anatomy."""
    options = measured.options
    classes = measure_classes(
        measured.objective,
        measured.selected,
        lambda: _whole_split(measured, 0),
        engine=options.engine,
        report=report,
    )
    if options.per_class:
        classes = check_classes(classes)
        noise = replace(noise, per_class=classes.noise(measured.sample))
        if classes.left_out:
            names = ", ".join(map(str, classes.left_out))
            few = "fewer than 2 examples" + (" or no weight" if measured.problem.weights else "")
            note = f"classes with {few} are left out: {names}"
            noise = replace(noise, notes=(*noise.notes, note))
    if options.anatomy and noise.effective_examples is None:
        note = "all gradients are one: there is no noise whose parts could be told"
        return replace(noise, notes=(*noise.notes, note))
    if options.anatomy:
        report("anatomy")
        anatomy = measure_anatomy(
            measured.objective,
            measured.moments,
            measured.sample,
            classes,
            num_items=measured.selected.population_size // options.augmentations,
        )
        noise = replace(noise, anatomy=anatomy)
    return noise


def _top_examples(
    moments: GradientMoments, selected: Selection, augmentations: int
) -> pd.DataFrame:
    """The examples with the largest shares |g_i − ḡ|²/Σ_j |g_j − ḡ|² of tr Σ."""
    import pandas as pd

    total = moments.total_projections
    assert total is not None
    distances = squared_deviations(
        moments.squared_norms.sum(1), total, float(moments.mean_squares.sum()), moments.weighting
    )
    losses = moments.losses
    if moments.weighting is not None:  # of the examples, without what they count for
        relative = moments.weighting.relative
        losses = np.divide(losses, relative, where=relative > 0, out=np.full_like(losses, np.nan))
    num_items = selected.population_size // augmentations  # behind which come their other draws
    first = np.argsort(-distances, kind="stable")[:TOP_EXAMPLES]
    rows = {
        "index": moments.indices[first] % num_items,
        "share": distances[first] / distances.sum() if distances.sum() else 0 * distances[first],
        "loss": losses[first],
    }
    targets = selected.examples.part(torch.from_numpy(first.copy())).targets
    if isinstance(targets, Tensor) and targets.ndim == 1:
        rows["target"] = targets.tolist()
    return pd.DataFrame(rows)
