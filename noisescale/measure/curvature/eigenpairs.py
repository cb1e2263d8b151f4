"""Extreme eigenpairs of a symmetric matrix known by its products, with residuals and a verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from noisescale.errors import SettingError
from noisescale.measure.curvature.krylov import Krylov, length, product, rounding
from noisescale.measure.curvature.operators import space_of
from noisescale.problems.problem import MatVec
from noisescale.statistics.display import counted, listed, one_line

Which = Literal["largest", "smallest", "magnitude"]
Method = Literal["lanczos", "power"]

# Of Krylov vectors before a restart: 512 MiB, beside which a model and its graph fit on any
# machine; more of them where these do not leave enough to work with
BASIS_BYTES = 2**29
# A start that happens to lack the sought eigenvector converges to the next one first. Two further
# products that change nothing, and a random half of every warm start, make that rare. Simulated
# with a gap of 4 %: 0.7 % of cold starts end there, 1 % without; of warm starts from an eigenvector
# that has just been overtaken 12 %, without all.
PATIENCE = 2
WARM_START_NOISE = 1.0
# How far beyond the wanted values, in units of |H|, another's residual must reach to matter:
# residuals bound errors from far above, so that a little beyond is no sign of a rival
RIVALRY = 0.05
# At a restart, the share of the basis that is given up at least
LEAST_FREED = 1 / 3
# Ritz vectors after the wanted ones that a warm start contains, since they may overtake them
COMPANIONS = 2
COMPANY = 0.1  # weight of the first, each further one's is half: far above what a random start has
# Power iteration: |Hv| has settled when it grows by less than 1 % in a step; if half of Hv is still
# residual then, two eigenvalues of opposite sign and nearly equal magnitude compete
SETTLING = 1.01
COMPETING = 0.5


@dataclass(frozen=True, kw_only=True, repr=False)
class EigenPairs:
    """K eigenpairs of a symmetric matrix, the most wanted first.

    Attributes:
        values: λ (K,), float64 on the CPU.
        vectors: v (K, P), a unit vector a row, in the dtype and on the device of the products.
        residuals: |Hv − λv| (K,), float64 on the CPU; each bounds the distance of its λ from the
            nearest eigenvalue.
        tolerances: the residuals that count as converged (K,): rtol·|λ|, or what rounding leaves.
        companions: estimates of the eigenvectors that come next (J, P), unit vectors, maybe none.
        num_matvecs: products used.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    tolerances: Tensor
    companions: Tensor
    num_matvecs: int

    def __repr__(self) -> str:
        values = listed(f"{value:.4g}" for value in self.values.tolist())
        largest = max(self.residuals.tolist(), default=0.0)
        return one_line(
            self,
            f"λ = {values}",
            f"residuals up to {largest:.2g}" + ("" if self.converged else " NOT CONVERGED"),
            f"P = {self.vectors.shape[-1]:,}",
            counted(self.num_matvecs, "product"),
        )

    @property
    def converged_each(self) -> Tensor:
        """Whether each residual is within its tolerance: (K,), bool."""
        return self.residuals <= self.tolerances

    @property
    def warm_start(self) -> Tensor:
        """What to start from at nearby parameters: (K + J, P), the companions with less weight."""
        weights = COMPANY * 0.5 ** torch.arange(len(self.companions))
        return torch.cat([self.vectors, weights.to(self.companions).unsqueeze(1) * self.companions])

    @property
    def converged(self) -> bool:
        """Whether all residuals are within their tolerances."""
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
    """The k largest, k smallest (algebraically) or k largest-in-magnitude eigenpairs.

    The stop is on the residual, never on the change of the value, which on spectra such as {50, 48}
    or {−52, 50} stands still at wrong values. A small residual proves λ to be *an* eigenvalue; that
    none lies beyond it rests on the random part of the start. Of a multiple eigenvalue Lanczos
    finds one copy until rounding brings up the next; "power" finds all.

    Args:
        matvec: v -> Hv, (P,) -> (P,), of one symmetric matrix. What `hessian_matvec` and
            `ggn_matvec` return knows its dim, dtype and device; a bare function's are said here.
        dim: P. None: the operator's own; a bare function needs it.
        k: how many, 1 to P.
        which: "largest", "smallest" or "magnitude".
        method: "lanczos" with full reorthogonalisation and thick restarts (Wu and Simon 2000), or
            "power" iteration with deflation, which takes many more products.
        rtol: a pair has converged when |Hv − λv| ≤ rtol·|λ|, or ≤ 100·ε·|H| where rounding forbids
            better.
        max_matvecs: products at most; what has not converged by then is returned with its residual
            and `converged` False.
        start: (P,) or (K, P), vectors near the ones sought, such as those of an earlier checkpoint;
            None: a random one.
        dtype: of the vectors. None: the operator's own, so float64 for an operator in float64;
            float32 for a bare function.
        device: of the vectors. None: the operator's own; the CPU for a bare function.
        generator: of the random vectors, on the CPU; None: seed 0.

    Returns:
        The pairs, the most wanted first, each with its residual.

    Raises:
        SettingError: k outside 1…P or another bad argument; a bare function without dim; a dim,
            dtype or device that is not the operator's.
        MeasurementError: a product is not finite, or the products are not those of one symmetric
            matrix, as with an active dropout.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, hessian_matvec, top_eigenpairs
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> top_eigenpairs(hessian_matvec(problem), k=2).converged
        True
        >>> import torch
        >>> matrix = torch.diag(torch.tensor([3.0, 1.0, -2.0]))
        >>> top_eigenpairs(lambda v: matrix @ v, dim=3, which="smallest").values
        tensor([-2.0000], dtype=torch.float64)
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
    search = _Search(which=which, k=k, rtol=rtol, max_matvecs=max_matvecs)
    generator = generator or torch.Generator().manual_seed(0)

    def random() -> Tensor:
        return space.normal(generator)

    solve = _lanczos if method == "lanczos" else _power
    return solve(matvec, search, _starts(start, random, space.dim), random)


class _Search(NamedTuple):
    """Which eigenpairs are sought, how precisely and for how many products."""

    which: Which
    k: int
    rtol: float
    max_matvecs: int

    def scores(self, values: Tensor) -> Tensor:
        """The larger, the more wanted."""
        if self.which == "magnitude":
            return values.abs()
        return values if self.which == "largest" else -values

    def tolerances(self, values: Tensor, norm: float, dtype: torch.dtype) -> Tensor:
        """The residuals (K,) that count as converged; norm: |H|."""
        return (self.rtol * values.abs()).clamp(min=rounding(dtype) * norm)


def _lanczos(
    matvec: MatVec, search: _Search, start: Tensor | None, random: Callable[[], Tensor]
) -> EigenPairs:
    """The Ritz pairs of a Krylov basis, grown and restarted until the wanted ones have settled."""
    k = search.k
    first = random() if start is None else start.sum(0)
    rows = max(BASIS_BYTES // first.nbytes, 2 * k + 8)
    krylov = Krylov(matvec, first, capacity=min(search.max_matvecs, rows), random=random)
    settled = 0
    while True:
        krylov.step()
        values, coordinates, residuals = krylov.ritz()
        scores = search.scores(values)
        order = scores.argsort(descending=True)
        wanted, others = order[:k], order[k:]
        tolerances = search.tolerances(values[wanted], krylov.norm, first.dtype)
        converged = len(wanted) == k and bool((residuals[wanted] <= tolerances).all())
        # the eigenvalue that an unconverged Ritz value stands for may lie beyond the wanted ones
        reach = scores[others] + residuals[others]
        rivals = len(wanted) == k and (reach > scores[wanted[-1]] + RIVALRY * krylov.norm).any()
        settled = settled + 1 if converged and not rivals else 0
        complete = krylov.size == krylov.dim
        if settled > PATIENCE or complete or krylov.num_matvecs == search.max_matvecs:
            return EigenPairs(
                values=values[wanted],
                vectors=krylov.vectors(coordinates[:, wanted]),
                residuals=residuals[wanted],
                tolerances=tolerances,
                companions=krylov.vectors(coordinates[:, others[:COMPANIONS]]),
                num_matvecs=krylov.num_matvecs,
            )
        if krylov.size == krylov.capacity:
            krylov.restart(order[_kept(scores[order], search)])


def _kept(scores: Tensor, search: _Search) -> Tensor:
    """Which Ritz vectors to restart from: places in their scores (m,), the most wanted first.

    From both ends of the spectrum, as many of each as make the most of the products that follow:
    `freed` of them gain on the unwanted like a polynomial of that degree, which grows with
    freed·√(gap/spread), the gap from the wanted to the values not kept, and their spread
    (Yamazaki et al. 2010). Where the outliers of the other end stay, the spread is small.
    """
    k, size = search.k, len(scores)
    if search.which == "magnitude":  # whose unwanted values lie between two wanted ends
        return torch.arange((size + k) // 2)
    near = torch.arange(k, size).unsqueeze(1)  # how many of the wanted end are kept
    far = torch.arange(size)  # and of the other
    freed = size - near - far
    spread = scores[near] - scores[-1 - far]
    gain = (
        freed
        * ((scores[k - 1] - scores[near]) / spread.clamp(min=1e-12 * scores.abs().max())).sqrt()
    )
    best = gain.where(freed >= LEAST_FREED * size, -1.0).argmax()
    kept_near, kept_far = int(best) // size + k, int(best) % size
    return torch.cat([torch.arange(kept_near), torch.arange(size - kept_far, size)])


def _power(
    matvec: MatVec, search: _Search, start: Tensor | None, random: Callable[[], Tensor]
) -> EigenPairs:
    """Pair after pair, each orthogonal to those before, then Rayleigh–Ritz on all of them."""
    template = random()
    vectors = template.new_empty(0, len(template))
    images = vectors  # H times them, (0, P) as yet
    norm, num_matvecs = 0.0, 0
    for index in range(search.k):
        first = start[index] if start is not None and index < len(start) else random()
        reserved = search.k - 1 - index  # one product at least for every pair to come
        pair = _deflated_pair(
            matvec,
            search,
            vectors,
            first,
            max_matvecs=search.max_matvecs - num_matvecs - reserved,
            random=random,
        )
        vectors = torch.cat([vectors, pair.vector.unsqueeze(0)])
        images = torch.cat([images, pair.image.unsqueeze(0)])
        norm = max(norm, pair.norm)
        num_matvecs += pair.num_matvecs
    return _rayleigh_ritz(search, vectors, images, norm, num_matvecs)


class _PowerPair(NamedTuple):
    """A unit vector (P,) and its image Hv (P,), the largest |Hv| met, and the products used."""

    vector: Tensor
    image: Tensor
    norm: float
    num_matvecs: int


def _deflated_pair(
    matvec: MatVec,
    search: _Search,
    earlier: Tensor,
    first: Tensor,
    *,
    max_matvecs: int,
    random: Callable[[], Tensor],
) -> _PowerPair:
    """The sought eigenpair on the complement of the vectors `earlier` (K, P), from `first` (P,) on.

    Power iteration finds the largest |λ|. Where that lies at the wrong end of the spectrum, or two
    of opposite sign compete, it goes on with H ± |H|·I, in which the sought end is the largest in
    magnitude.
    """
    sign = {"largest": 1.0, "smallest": -1.0, "magnitude": 0.0}[search.which]
    vector = _deflated_unit(first, earlier)
    norm = shift = 0.0  # of H on the complement; |H| once the matrix is shifted
    num_matvecs = 0
    while True:
        image = product(matvec, vector)
        num_matvecs += 1
        value, size = float(vector @ image), length(image)
        settling = size <= SETTLING * norm
        norm = max(norm, size)
        residual = length(_without(image - value * vector, earlier))
        converged = residual <= max(search.rtol * abs(value), rounding(image.dtype) * norm)
        wrong_end = converged and sign * value + shift < 0
        if num_matvecs >= max_matvecs or (converged and not wrong_end):
            return _PowerPair(vector, image, norm, num_matvecs)
        competing = settling and not shift and residual > COMPETING * size
        if sign and (wrong_end or competing):
            shift = norm
            vector = _deflated_unit(random(), earlier)
        else:
            vector = _deflated_unit(image + sign * shift * vector, earlier)


def _deflated_unit(vector: Tensor, earlier: Tensor) -> Tensor:
    """The vector (P,) made orthogonal to the rows of `earlier` (K, P) and of unit length."""
    for _ in range(2):  # once leaves rounding errors along the earlier ones
        vector = _without(vector, earlier)
    return vector / (length(vector) or 1.0)


def _without(vector: Tensor, earlier: Tensor) -> Tensor:
    """The vector (P,) without its part along the orthonormal rows of `earlier` (K, P)."""
    return vector - (earlier @ vector) @ earlier


def _rayleigh_ritz(
    search: _Search, vectors: Tensor, images: Tensor, norm: float, num_matvecs: int
) -> EigenPairs:
    """The best pairs in the span of `vectors` (K, P), whose products are `images` (K, P)."""
    projection = (vectors @ images.T).double().cpu()  # (K, K)
    values, coordinates = torch.linalg.eigh((projection + projection.T) / 2)
    order = search.scores(values).argsort(descending=True)
    values, rotation = values[order], coordinates[:, order].T.to(vectors)
    vectors, images = rotation @ vectors, rotation @ images
    misses = images - values.to(vectors).unsqueeze(1) * vectors  # (K, P)
    residuals = torch.tensor([length(miss) for miss in misses], dtype=torch.float64)
    return EigenPairs(
        values=values,
        vectors=vectors,
        residuals=residuals,
        tolerances=search.tolerances(values, norm, vectors.dtype),
        companions=vectors[:0],
        num_matvecs=num_matvecs,
    )


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
            f"start of shape {tuple(start.shape)}: "
            f"give finite vectors that are not zero, of length P = {dim}"
        )
    noise = torch.stack([random() for _ in start])
    noise *= start.norm(dim=1, keepdim=True) / noise.norm(dim=1, keepdim=True)
    return start.to(noise) + WARM_START_NOISE * noise
