"""The noise of a problem's gradient at one parameter vector, as one record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from noisescale.errors import SettingError
from noisescale.measure.gradients.engine import EngineName
from noisescale.measure.gradients.moments import GradientMoments, check_modes, moments_on
from noisescale.measure.noise_probes import probe_curvature
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Params, Problem
from noisescale.problems.sampling import Selection, part_of, select, split_data
from noisescale.statistics.gradient_noise import (
    NoiseScale,
    gradient_noise,
    mean_estimate,
    noise_scale,
    table,
)
from noisescale.statistics.hessian_noise import CurvatureNoise
from noisescale.statistics.sample import Population, Sample

HESSIAN_EXAMPLES = 4096
TOP_EXAMPLES = 10
NEGLIGIBLE = 100  # units of rounding


def measure_noise(
    problem: Problem,
    params: Params | None = None,
    *,
    split: str = "train",
    population: Population | None = None,
    num_examples: int | None = None,
    hessian: bool = False,
    num_probes: int = 32,
    hessian_examples: int | None = None,
    per_layer: bool = False,
    per_class: bool = False,
    engine: EngineName = "auto",
    chunk_size: int | None = None,
    dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    report: Callable[[str], None] = lambda activity: None,
) -> NoiseScale:
    """|G|², tr Σ and B_simple = tr Σ/|G|² at `params` (None: the model's own), with their errors.

    split, num_examples, engine, chunk_size, dtype: of `gradient_moments`.
    population: "dataset", noise about the mean gradient of the split's examples, the default for "train"; or
        "distribution", about that of fresh examples, the default for others.
    hessian: tr(HΣ), GᵀHG, B_noise and ε_max as well, see `probe_curvature`: with `num_probes` noise
        probes, H on `hessian_examples` (None: 4,096, at most half of the split). For a data set these are
        drawn independently of the gradients' examples; for a distribution they are others, taken from
        the gradients' where the split has no more.
    per_layer, per_class: a row for each parameter tensor, for each class of the target.
    generator: of every random choice, on the CPU; None: seed 0.
    report: is told what is being computed.

    McCandlish et al. 2018 (arXiv 1812.06162), (2.8), (2.9). Raises as `gradient_moments` does.
    """
    generator = generator or torch.Generator().manual_seed(0)
    population = population or ("dataset" if split == "train" else "distribution")
    check_modes(problem.model)
    selected = select(problem, split=split, num_examples=num_examples, generator=generator)
    objective = Objective(
        problem, params, examples=selected.examples, dtype=dtype, chunk_size=chunk_size
    )
    sample = Sample(
        num_examples=objective.num_examples,
        population_size=selected.population_size,
        population=population,
    )
    report("gradients")
    moments = moments_on(
        objective, indices=selected.indices, population_size=selected.population_size, engine=engine
    )
    found = noise_scale(
        moments.squared_norms,
        moments.projections,
        moments.mean_squares,
        population=population,
        population_size=selected.population_size,
        names=list(moments.mean) if per_layer else None,
    )
    notes = found.notes + moments.notes
    rounding = torch.finfo(objective.dtype).eps * moments.squared_norms.sum(1).mean()
    if found.gradient_variance.value < NEGLIGIBLE * rounding:
        notes = (
            *notes,
            f"tr Σ is no more than {objective.dtype} leaves of |g|²: the gradients are nearly one",
        )
    if found.per_layer is not None and found.per_layer["gradient_variance_stderr"].isna().any():
        notes = (*notes, f"the engine {moments.engine} gives no errors per layer; hooks does")
    curvature = None
    if hessian:
        curvature = _curvature_noise(
            problem,
            objective,
            selected,
            moments,
            split=split,
            population=population,
            num_probes=num_probes,
            hessian_examples=hessian_examples,
            generator=generator,
            report=report,
        )
    by_class = None
    if per_class:
        by_class, left_out = _per_class(
            problem, objective, selected, split, population, engine, report
        )
        if left_out:
            names = ", ".join(map(str, left_out))
            notes = (*notes, f"classes with fewer than 2 examples are left out: {names}")
    return replace(
        found,
        split=split,
        engine=moments.engine,
        loss=mean_estimate(moments.losses, sample),
        curvature=curvature,
        per_class=by_class,
        top_examples=_top_examples(moments, selected),
        notes=notes,
    )


def hessian_sample_size(population_size: int) -> int:
    """How many examples H is taken on unless it is said."""
    return min(HESSIAN_EXAMPLES, population_size // 2)


def _curvature_noise(
    problem: Problem,
    objective: Objective,
    selected: Selection,
    moments: GradientMoments,
    *,
    split: str,
    population: Population,
    num_probes: int,
    hessian_examples: int | None,
    generator: torch.Generator,
    report: Callable[[str], None],
) -> CurvatureNoise:
    """With H on examples that are independent of the gradients'."""
    size, sample = selected.population_size, selected.examples.num_examples
    wanted = hessian_sample_size(size) if hessian_examples is None else hessian_examples
    largest = size if population == "dataset" else size - 4
    if not 2 <= wanted <= largest:
        raise SettingError(
            f"hessian examples {wanted}: the {split} split has {size}; give 2 to {largest}"
            + ("" if population == "dataset" else ", which leaves 4 others for the gradients")
        )
    order = torch.randperm(size, generator=generator)
    of_gradients = objective
    if population == "distribution":
        taken = torch.zeros(size, dtype=torch.bool)
        taken[selected.indices] = True
        order = torch.cat(
            [order[~taken[order]], order[taken[order]]]
        )  # those without a gradient come first
        kept = ~torch.isin(selected.indices, order[:wanted])
        if kept.sum() < 4:
            raise SettingError(
                f"{sample} examples: B_noise takes at least 4 beside those of the Hessian"
            )
        if not kept.all():
            of_gradients = objective.on(
                selected.examples.part(kept.to(selected.examples.targets.device))
            )
    examples = part_of(split_data(problem, split), order[:wanted])
    spread = moments.squared_norms.sum(1).mean() - moments.mean_squares.sum()
    variance = float(spread) * sample / (sample - 1)
    unseen = 1 / of_gradients.num_examples - (1 / size if population == "dataset" else 0.0)
    return probe_curvature(
        of_gradients,
        objective.on(examples),
        squared_gradient_norm=lambda mean: float(mean.double().square().sum()) - unseen * variance,
        population=population,
        population_size=size,
        num_probes=num_probes,
        engine=moments.engine,  # the one that was found to fit the model
        generator=generator,
        report=report,
    )


def _per_class(
    problem: Problem,
    objective: Objective,
    selected: Selection,
    split: str,
    population: Population,
    engine: EngineName,
    report: Callable[[str], None],
) -> tuple[pd.DataFrame, list[int]]:
    """A row per class, each a population of its own, and the classes left out for want of two examples."""
    targets = selected.examples.targets
    if targets.ndim != 1 or targets.is_floating_point() or targets.is_complex():
        raise SettingError(
            "per class: the targets are no classes, one whole number for each example"
        )
    whole = _class_sizes(problem, split, selected)
    found = {}
    left_out = []
    for number in sorted(whole):
        rows = (targets == number).nonzero().squeeze(1)
        if len(rows) < 2:
            left_out.append(number)
            continue
        report(f"class {number}")
        moments = moments_on(
            objective.on(selected.examples.part(rows)),
            indices=selected.indices[rows.cpu()],
            population_size=whole[number],
            engine=engine,
        )
        found[number] = gradient_noise(
            moments.squared_norms.sum(1),
            moments.total_projections,
            float(moments.mean_squares.sum()),
            Sample(num_examples=len(rows), population_size=whole[number], population=population),
        )
    return table("class", found), left_out


def _class_sizes(problem: Problem, split: str, selected: Selection) -> dict[int, int]:
    """How many examples of each class the split has."""
    targets = selected.examples.targets
    if len(targets) < selected.population_size:
        targets = part_of(
            split_data(problem, split), torch.arange(selected.population_size)
        ).targets
    values, counts = targets.unique(return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _top_examples(moments: GradientMoments, selected: Selection) -> pd.DataFrame:
    """The examples with the largest shares |g_i − ḡ|²/Σ_j |g_j − ḡ|² of tr Σ."""
    total = moments.total_projections
    assert total is not None
    distances = moments.squared_norms.sum(1) - 2 * total + moments.mean_squares.sum()
    first = np.argsort(-distances, kind="stable")[:TOP_EXAMPLES]
    rows = {
        "index": moments.indices[first],
        "share": distances[first] / distances.sum() if distances.sum() else 0 * distances[first],
        "loss": moments.losses[first],
    }
    if selected.examples.targets.ndim == 1:
        rows["target"] = selected.examples.targets[torch.from_numpy(first.copy())].tolist()
    return pd.DataFrame(rows)
