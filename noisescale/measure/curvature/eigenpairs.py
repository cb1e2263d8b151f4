"""Extreme eigenpairs of a symmetric matrix known only by its products, with residuals and a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from noisescale.errors import SettingError
from noisescale.measure.curvature.krylov import Krylov, product, rounding
from noisescale.measure.curvature.operators import space_of
from noisescale.problems.problem import MatVec

Which = Literal["largest", "smallest", "magnitude"]
Method = Literal["lanczos", "power"]

BASIS_BYTES = (
    2**28
)  # of Krylov vectors before a restart, where that leaves enough of them to work with
# A start that happens to lack the sought eigenvector converges to the next one first. Two further products
# that change nothing, and a random half of every warm start, make that rare: .7 % instead of 1 % of cold
# starts, 12 % instead of all of those from an eigenvector that has just been overtaken (simulated, gap 4 %)
PATIENCE = 2
WARM_START_NOISE = 1.0
RIVALRY = (
    0.05  # how far beyond the wanted ones, in their units, another's residual must reach to matter
)
COMPANIONS = (
    2  # Ritz vectors after the wanted ones that a warm start contains, since they may overtake them
)


@dataclass(frozen=True, kw_only=True)
class EigenPairs:
    """K eigenpairs of a symmetric matrix, in the order asked for.

    values (K,), vectors (K, P) of unit length, residuals (K,): |Hv − λv|, which bounds the distance of λ from
        the nearest eigenvalue. All on the CPU in float64 but the vectors.
    tolerances (K,): the residual that counted as converged, rtol·|λ| or what rounding leaves.
    companions (J, P): estimates of the eigenvectors that come next, unit length, maybe none.
    num_matvecs: products used.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    tolerances: Tensor
    companions: Tensor
    num_matvecs: int

    @property
    def converged_each(self) -> Tensor:
        """Whether each residual is within its tolerance: (K,), bool."""
        return self.residuals <= self.tolerances

    @property
    def warm_start(self) -> Tensor:
        """What to start from at nearby parameters: (K + J, P), the companions at lesser weights."""
        weights = 0.5 ** torch.arange(1, len(self.companions) + 1)
        return torch.cat([self.vectors, weights.to(self.companions).unsqueeze(1) * self.companions])

    @property
    def converged(self) -> bool:
        """Whether all are."""
        return bool(self.converged_each.all())


def top_eigenpairs(
    matvec: MatVec,
    *,
    dim: int | None = None,
    k: int = 1,
    which: Which = "largest",
    method: Method = "lanczos",
    rtol: float = 1e-3,
    max_matvecs: int = 200,
    start: Tensor | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> EigenPairs:
    """The k largest, the k smallest (algebraically) or the k largest-in-magnitude eigenpairs.

    matvec: v -> Hv, (P,) -> (P,), of one symmetric matrix. One of `hessian_matvec` or `ggn_matvec` knows
        its dim, dtype and device; of a bare function they are said here.
    dim: P. None: the operator's own; a bare function needs it.
    dtype: of the vectors. None: the operator's own, so float64 for one in float64; float32 for a bare
        function. device: None: the operator's own; the CPU for a bare function.
    method: "lanczos" with full reorthogonalisation and thick restarts (Wu and Simon 2000), or "power"
        iteration with deflation, which takes many more products.
    rtol: a pair has converged when |Hv − λv| ≤ rtol·|λ|, or ≤ 100·ε·|H| where rounding forbids better.
    max_matvecs: products at most; whatever has not converged by then is returned with its residual and
        `converged` False.
    start: (P,) or (K, P), vectors near the ones sought, such as those of an earlier checkpoint.
    generator: of the random start, on the CPU; None: seed 0.

    The stop is on the residual, never on the change of the value, which on spectra such as {50, 48} or
    {−52, 50} stands still at wrong values. A small residual proves λ to be *an* eigenvalue; that none lies
    beyond it rests on the random part of the start. Of a multiple eigenvalue Lanczos finds one copy until
    rounding brings up the next; "power" finds all.

    Raises SettingError for k outside 1…P and other bad arguments, such as a dim, dtype or device that is not
    the operator's, or a bare function without dim, MeasurementError where a product is not
    finite or the products are not those of one symmetric matrix (an active dropout, say).
    """
    space = space_of(matvec, dim=dim, dtype=dtype, device=device)
    if not 1 <= k <= space.dim:
        raise SettingError(
            f"k = {k}: the matrix has P = {space.dim} eigenvalues; give 1 to {space.dim}"
        )
    if which not in get_args(Which) or method not in get_args(Method):
        raise SettingError(
            f"which {which!r}, method {method!r}: choose which of {', '.join(get_args(Which))} "
            f"and method of {', '.join(get_args(Method))}"
        )
    if not 0 < rtol < 1:
        raise SettingError(f"rtol {rtol!r}: give a number between 0 and 1, such as 1e-3")
    if max_matvecs < k:
        raise SettingError(f"max matvecs {max_matvecs}: {k} eigenpairs take at least {k}")
    generator = generator or torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return space.normal(generator)

    solve = _lanczos if method == "lanczos" else _power
    return solve(matvec, random, k, which, rtol, max_matvecs, _starts(start, random, space.dim))


def _lanczos(
    matvec: MatVec,
    random: Callable[[], Tensor],
    k: int,
    which: Which,
    rtol: float,
    max_matvecs: int,
    start: Tensor | None,
) -> EigenPairs:
    first = random() if start is None else start.sum(0)
    rows = BASIS_BYTES // first.nbytes
    krylov = Krylov(matvec, first, capacity=min(max_matvecs, max(rows, 2 * k + 8)), random=random)
    settled = 0
    while True:
        krylov.step()
        values, coordinates, residuals = krylov.ritz()
        scores = _scores(values, which)
        order = scores.argsort(descending=True)
        wanted, others = order[:k], order[k:]
        tolerances = _tolerances(values[wanted], krylov.norm, rtol, first.dtype)
        converged = len(wanted) == k and bool((residuals[wanted] <= tolerances).all())
        # the eigenvalue that an unconverged Ritz value stands for may lie beyond the wanted ones
        reach = scores[others] + residuals[others]
        rivals = (
            len(wanted) == k
            and (reach > scores[wanted[-1]] + RIVALRY * values[wanted[-1]].abs()).any()
        )
        settled = settled + 1 if converged and not rivals else 0
        complete = krylov.size == krylov.dim
        if settled > PATIENCE or complete or krylov.num_matvecs == max_matvecs:
            return EigenPairs(
                values=values[wanted],
                vectors=krylov.vectors(coordinates[:, wanted]),
                residuals=residuals[wanted],
                tolerances=tolerances,
                companions=krylov.vectors(coordinates[:, others[:COMPANIONS]]),
                num_matvecs=krylov.num_matvecs,
            )
        if krylov.size == krylov.capacity:
            krylov.restart(order[: (krylov.capacity + k) // 2])


def _power(
    matvec: MatVec,
    random: Callable[[], Tensor],
    k: int,
    which: Which,
    rtol: float,
    max_matvecs: int,
    start: Tensor | None,
) -> EigenPairs:
    """Pair after pair, each orthogonal to those before (deflation), then Rayleigh–Ritz on all of them.

    Power iteration finds the largest |λ|. Where that lies at the wrong end of the spectrum, or two of
    opposite sign compete, it goes on with H ± |H|·I, in which the sought end is the largest in magnitude.
    """
    sign = {"largest": 1.0, "smallest": -1.0, "magnitude": 0.0}[which]
    template = random()
    vectors, images = template.new_empty(0, len(template)), template.new_empty(0, len(template))
    num_matvecs = 0
    norms = []

    def unit(vector: Tensor) -> Tensor:
        for _ in range(2):
            vector = vector - (vectors @ vector) @ vectors
        return torch.nn.functional.normalize(vector, dim=0)

    for index in range(k):
        vector = unit(start[index] if start is not None and index < len(start) else random())
        budget = max_matvecs - (k - 1 - index)  # one product at least for every pair
        norm = shift = 0.0  # of H on what the earlier vectors leave
        while True:
            image = product(matvec, vector)
            num_matvecs += 1
            value, size = float(vector @ image), float(image.norm())
            settling = size <= 1.01 * norm
            norm = max(norm, size)
            residual = image - value * vector
            residual_norm = float((residual - (vectors @ residual) @ vectors).norm())
            converged = residual_norm <= max(rtol * abs(value), rounding(image.dtype) * norm)
            wrong_end = converged and sign * value + shift < 0
            competing = settling and not shift and residual_norm > 0.5 * size
            if num_matvecs >= budget or (converged and not wrong_end):
                break
            if sign and (wrong_end or competing):
                shift = norm
                vector = unit(random())
            else:
                vector = unit(image + sign * shift * vector)
        vectors = torch.cat([vectors, vector.unsqueeze(0)])
        images = torch.cat([images, image.unsqueeze(0)])
        norms.append(norm)
    return _rayleigh_ritz(vectors, images, which, rtol, max(norms), num_matvecs)


def _rayleigh_ritz(
    vectors: Tensor, images: Tensor, which: Which, rtol: float, norm: float, num_matvecs: int
) -> EigenPairs:
    """The best pairs in the span of `vectors` (K, P), whose products are `images` (K, P)."""
    projection = (vectors @ images.T).double().cpu()
    values, coordinates = torch.linalg.eigh((projection + projection.T) / 2)
    order = _scores(values, which).argsort(descending=True)
    values, rotation = values[order], coordinates[:, order].T.to(vectors)
    vectors, images = rotation @ vectors, rotation @ images
    residuals = (images - values.to(vectors).unsqueeze(1) * vectors).norm(dim=1).double().cpu()
    return EigenPairs(
        values=values,
        vectors=vectors,
        residuals=residuals,
        tolerances=_tolerances(values, norm, rtol, vectors.dtype),
        companions=vectors[:0],
        num_matvecs=num_matvecs,
    )


def _scores(values: Tensor, which: Which) -> Tensor:
    """The larger, the more wanted."""
    if which == "magnitude":
        return values.abs()
    return values if which == "largest" else -values


def _tolerances(values: Tensor, norm: float, rtol: float, dtype: torch.dtype) -> Tensor:
    """The residuals (K,) that count as converged."""
    return (rtol * values.abs()).clamp(min=rounding(dtype) * norm)


def _starts(start: Tensor | None, random: Callable[[], Tensor], dim: int) -> Tensor | None:
    """The given vectors (K, P), each with a random direction of its own length mixed in."""
    if start is None:
        return None
    start = start.reshape(-1, start.shape[-1])
    if (
        start.shape[-1] != dim
        or not len(start)
        or not start.isfinite().all()
        or not start.norm(dim=1).all()
    ):
        raise SettingError(
            f"start of shape {tuple(start.shape)}: give finite vectors that are not zero, of length P = {dim}"
        )
    noise = torch.stack([random() for _ in start])
    noise *= start.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    return start.to(noise) + WARM_START_NOISE * noise
