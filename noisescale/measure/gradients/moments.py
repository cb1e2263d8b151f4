"""Sufficient statistics of per-example gradients, the one thing noise scales need of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.distributed import Share
from noisescale.measure.gradients.choice import EngineChoice
from noisescale.measure.gradients.engine import Engine, EngineError, EngineName
from noisescale.measure.objective import Objective, flatten
from noisescale.problems.config import Amp
from noisescale.problems.problem import Examples, Params, Problem
from noisescale.problems.sampling import select
from noisescale.statistics.display import counted, one_line
from noisescale.statistics.sample import Weighting


class MetricMoments(NamedTuple):
    """The same statistics under a diagonal preconditioner P: of √P g_i instead of g_i.

    squared_norms: g_iᵀPg_i of each tensor (n, L). projections: g_iᵀPḡ (n, L) or (n,); None without
    standard errors. mean_squares: ḡᵀPḡ (L,). weighting: as that of the moments, of √P g_i.
    """

    squared_norms: np.ndarray
    projections: np.ndarray | None
    mean_squares: np.ndarray
    weighting: Weighting | None


@dataclass(frozen=True, kw_only=True, repr=False)
class GradientMoments:
    """Statistics of n per-example gradients g_i, out of which |G|² and tr Σ are estimated.

    Attributes:
        num_examples: n.
        population_size: N, of the split that the examples are a random subset of.
        mean: ḡ = (1/n) Σ g_i by parameter, float64.
        squared_norms: |g_i|² of each of L parameter tensors (n, L), float64.
        projections: g_i·ḡ of each tensor (n, L), or in all (n,), float64; None without standard
            errors.
        losses: ℓ_i (n,), float64.
        indices: of the examples in their split (n,).
        engine: what computed them.
        notes: what a reader should know of how they were computed.
        weighting: of a problem with weights, the examples' relative weights r_i = w_i/w̄. The
            gradients g_i and losses ℓ_i are then those of r_i ℓ_i, whose plain means are Σ w g/Σ w
            and Σ w ℓ/Σ w. None: all count alike.
        preconditioned: the same of √P g_i, where a preconditioner P was given.
    """

    num_examples: int
    population_size: int
    mean: Params
    squared_norms: np.ndarray
    projections: np.ndarray | None
    losses: np.ndarray
    indices: np.ndarray
    engine: EngineName
    notes: tuple[str, ...] = ()
    weighting: Weighting | None = None
    preconditioned: MetricMoments | None = None

    def __repr__(self) -> str:
        return one_line(
            self,
            f"{self.num_examples:,} of {counted(self.population_size, 'example')}",
            counted(len(self.mean), "parameter tensor"),
            f"engine {self.engine}",
            "" if self.projections is not None else "without standard errors",
        )

    @property
    def total_projections(self) -> np.ndarray | None:
        """g_i·ḡ in all (n,), None without standard errors."""
        projections = self.projections
        if projections is None or projections.ndim == 1:
            return projections
        total: np.ndarray = projections.sum(1)
        return total

    @property
    def whole_weighting(self) -> Weighting | None:
        """The weighting for all parameters together, None where all count alike."""
        return None if self.weighting is None else self.weighting.total

    @property
    def mean_squares(self) -> np.ndarray:
        """|ḡ|² of each parameter tensor (L,)."""
        return np.array([part.square().sum().item() for part in self.mean.values()])


def gradient_moments(
    problem: Problem,
    params: Params | None = None,
    *,
    split: str = "train",
    num_examples: int | None = None,
    engine: EngineName = "auto",
    chunk_size: int | None = None,
    standard_errors: bool = True,
    dtype: torch.dtype | None = None,
    amp: Amp | None = None,
    generator: torch.Generator | None = None,
) -> GradientMoments:
    """Mean, squared norms and projections on the mean of the per-example gradients at `params`.

    The model must treat examples one by one; it is measured in evaluation mode. In several
    processes each takes a share of the examples, and all get the same result.

    Args:
        problem: the model, its loss and its examples.
        params: θ by name; None: the model's own.
        split: "train", "validation" or "test".
        num_examples: n, of a random subset of the split's examples; None: all of them.
        engine: "hooks" takes norms from the inputs and output gradients of the operations that use
            parameters, at about the price of one gradient; "vmap" writes the gradients out, a few
            examples at a time; "compiled" has torch.compile fuse them away; "loop" takes a backward
            pass for each example, which is the definition. Each is checked against the last on a
            few examples, before and after; where it does not work on the model, the next of hooks
            or compiled, vmap, loop takes over, with a note. "auto": hooks, or the quicker one where
            they cannot reach all parameters.
        chunk_size: examples in one pass, which does not change the result; None: by the memory.
        standard_errors: whether to compute projections, in a second pass of about the same price.
        dtype: float32 or float64; None: the parameters' own, at least float32.
        amp: "bf16": the model runs under torch.autocast, see `Objective`. None: it does not.
        generator: of the subset, on the CPU; None: seed 0.

    Returns:
        The statistics; sums are accumulated in float64.

    Raises:
        SettingError: batch norm or dropout in training mode, fewer than 2 examples, or another bad
            argument.
        MeasurementError: parameters, losses or gradients that are not finite, losses that are
            reduced over the batch, and losses that are random.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, gradient_moments
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> moments = gradient_moments(problem, num_examples=500)
        >>> moments
        GradientMoments(500 of 1,297 examples, 6 parameter tensors, engine hooks)
        >>> moments.squared_norms.shape
        (500, 6)
    """
    check_modes(problem.model)
    selected = select(problem, split=split, num_examples=num_examples, generator=generator)
    objective = Objective(
        problem,
        params,
        examples=selected.examples,
        dtype=dtype,
        chunk_size=chunk_size,
        amp=amp,
    )
    moments = moments_on(
        objective,
        indices=selected.indices,
        population_size=selected.population_size,
        engine=engine,
        standard_errors=standard_errors,
    )
    return replace(moments, notes=moments.notes + objective.notes)


def moments_on(
    objective: Objective,
    *,
    indices: Tensor,
    population_size: int,
    engine: EngineName = "auto",
    standard_errors: bool = True,
    preconditioner: Params | None = None,
) -> GradientMoments:
    """The moments of the objective's examples, which have these indices (n,) in their split.

    With a preconditioner P those of √P g_i as well, from the same passes.
    """
    num_examples = objective.num_examples
    if num_examples < 2:
        raise SettingError(
            f"{counted(num_examples, 'example')}: the covariance of gradients takes at least 2"
        )
    choice = EngineChoice(engine, objective)
    objective.check_separate()
    share = Share(num_examples)
    of_share = objective.differentiated_once().part(objective.examples.subset(share.rows))
    relative = objective.relative_weights()
    weighting: Weighting | None = None
    on_examples: list[np.ndarray] = []
    of_metric: list[np.ndarray] = []
    metric: Tensor | None = None
    if preconditioner is not None:
        metric = flatten([preconditioner[name] for name in objective.params()]).double()
    while True:
        sums, projections, failure = None, None, None
        try:
            chosen = choice.make(of_share)
            sums = _statistics(chosen, preconditioner)
            choice.confirm(chosen, sums.squared_norms)
        except EngineError as error:
            failure = error
        if not choice.all_did(failure, share):
            continue
        assert sums is not None
        mean = share.sum(sums.total) / num_examples
        losses, squared_norms = share.gather(sums.losses), share.gather(sums.squared_norms)
        _check_finite(objective, losses, squared_norms, indices)
        directions = [mean]
        if relative is not None:  # and q, for the errors of their covariance
            own = relative[share.rows].to(of_share.point).unsqueeze(0)
            doubled = share.sum(of_share.weighted_gradients(own)[1][0].double()) / num_examples
            directions.append(doubled)
            products = objective.unflatten(doubled * mean).values()
            on_mean = np.array([part.sum().item() for part in products])
            weighting = Weighting(relative.numpy(), on_mean)
        num_plain = len(directions)
        if metric is not None:
            directions += [metric * direction for direction in directions]
        if not standard_errors:
            break
        try:
            projections, *others = _projections(chosen, directions)
        except EngineError as error:
            failure = error
        if not choice.all_did(failure, share):
            continue
        assert projections is not None
        projections = share.gather(projections)
        of_metric = [share.gather(along) for along in others[num_plain - 1 :]]
        others = others[: num_plain - 1]
        on_examples = [share.gather(along) for along in others]
        if choice.all_did(_gap(objective, projections, mean), share):
            break
    if projections is not None and projections.shape != squared_norms.shape:  # (n, 1), in all
        projections = projections[:, 0]
        on_examples = [along[:, 0] for along in on_examples]
        of_metric = [along[:, 0] for along in of_metric]
    preconditioned: MetricMoments | None = None
    if metric is not None and sums.weighted is not None:
        preconditioned = _in_metric(
            objective,
            metric,
            squared_norms=share.gather(sums.weighted),
            directions=directions[:num_plain],
            along=of_metric,
            weighting=weighting,
        )
    if weighting is not None and on_examples:
        weighting = weighting._replace(on_examples=on_examples[0])
    return GradientMoments(
        num_examples=num_examples,
        population_size=population_size,
        mean=objective.unflatten(mean),
        squared_norms=squared_norms,
        projections=projections,
        losses=losses,
        indices=indices.numpy(),
        engine=chosen.name,
        notes=(*choice.notes, *chosen.notes),
        weighting=weighting,
        preconditioned=preconditioned,
    )


def _in_metric(
    objective: Objective,
    metric: Tensor,
    *,
    squared_norms: np.ndarray,
    directions: list[Tensor],
    along: list[np.ndarray],
    weighting: Weighting | None,
) -> MetricMoments:
    """The moments under the metric P (P,).

    squared_norms: under it. directions: ḡ and, of weighted examples, the mean of r_i g_i, each
    (P,). along: the projections of the g_i on P times them; empty without standard errors.
    """
    mean, *doubled = directions

    def by_tensor(product: Tensor) -> np.ndarray:
        return np.array([part.sum().item() for part in objective.unflatten(product).values()])

    if weighting is not None:
        weighting = Weighting(weighting.relative, by_tensor(doubled[0] * metric * mean))
        if along:
            weighting = weighting._replace(on_examples=along[1])
    return MetricMoments(
        squared_norms=squared_norms,
        projections=along[0] if along else None,
        mean_squares=by_tensor(metric * mean.square()),
        weighting=weighting,
    )


def check_modes(model: nn.Module) -> None:
    """SettingError where the model, as it stands, would mix or randomise examples."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if module.training or module.running_mean is None:
                raise SettingError(
                    f"{name or kind} ({kind}) normalises over the batch, so that no example has a "
                    "gradient of its own: call model.eval() to measure with running statistics, or "
                    "use GroupNorm"
                )
        elif isinstance(module, nn.Embedding | nn.EmbeddingBag) and (
            module.max_norm is not None or module.scale_grad_by_freq
        ):
            option = "max_norm" if module.max_norm is not None else "scale_grad_by_freq"
            raise SettingError(
                f"{name or kind} ({kind}) has {option}, with which a gradient depends on the whole "
                "batch: measure without it"
            )
        elif module.training and _dropout(module) > 0:
            raise SettingError(
                f"{name or kind} ({kind}) is active dropout, which makes every gradient random: "
                "call model.eval()"
            )


def _dropout(module: nn.Module) -> float:
    """The probability with which a module drops activations in training mode."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p
    return module.dropout if isinstance(module, nn.MultiheadAttention | nn.RNNBase) else 0.0


class _Sums(NamedTuple):
    """Losses (n,), squared norms (n, L) and the summed gradient (P,) of n examples, float64.

    weighted: the squared norms under a preconditioner (n, L); None without one.
    """

    losses: np.ndarray
    squared_norms: np.ndarray
    total: Tensor
    weighted: np.ndarray | None


def _statistics(engine: Engine, preconditioner: Params | None) -> _Sums:
    """The statistics of this process's share."""
    losses: list[Tensor] = []
    weighted: list[Tensor] = []
    squared_norms: list[Tensor] = []
    total = engine.objective.point.new_zeros(engine.objective.dim, dtype=torch.float64)
    by_parameter = engine.objective.unflatten(total)  # views

    def add(chunk: Examples, start: int) -> None:
        of_chunk = engine.statistics(chunk, preconditioner)
        losses.append(of_chunk.losses.double().cpu())
        squared_norms.append(of_chunk.squared_norms.cpu())
        if of_chunk.weighted is not None:
            weighted.append(of_chunk.weighted.cpu())
        for accumulated, part in zip(by_parameter.values(), of_chunk.gradient, strict=True):
            accumulated.add_(part)

    engine.objective.for_each_chunk(add)
    return _Sums(
        torch.cat(losses).numpy(),
        torch.cat(squared_norms).numpy(),
        total,
        torch.cat(weighted).numpy() if weighted else None,
    )


def _projections(engine: Engine, directions: list[Tensor]) -> list[np.ndarray]:
    """g_i·v for each of K directions v (P,), (n, L) or (n, 1), of this process's share."""
    objective = engine.objective
    by_name = [objective.unflatten(vector.to(objective.dtype)) for vector in directions]
    projections: list[Tensor] = []

    def add(chunk: Examples, start: int) -> None:
        projections.append(engine.projections(chunk, by_name).cpu())  # (K, B, L)

    objective.for_each_chunk(add)
    return list(torch.cat(projections, 1).numpy())


def _gap(objective: Objective, projections: np.ndarray, mean: Tensor) -> EngineError | None:
    """An error unless the mean of g_i·ḡ is |ḡ|², which no engine makes so."""
    total = projections.sum(1)
    gap = abs(total.mean() - mean.square().sum().item())
    if gap <= torch.finfo(objective.coarsest_dtype).eps ** 0.5 * np.abs(total).mean():
        return None
    return EngineError(
        f"{objective.name}: the projections of its gradients do not sum up (gap {gap:.2g}), as "
        "where forward and backward derivatives differ"
    )


def _check_finite(
    objective: Objective, losses: np.ndarray, norms: np.ndarray, indices: Tensor
) -> None:
    """MeasurementError naming the first example whose loss (n,) or norm (n, L) is not finite."""
    broken = np.flatnonzero(~np.isfinite(losses) | ~np.isfinite(norms).all(1))
    if len(broken):
        raise MeasurementError(
            f"{objective.name}: the loss or gradient of {len(broken)} of {len(losses)} examples is "
            f"not finite (first index {int(indices[broken[0]])})"
        )
