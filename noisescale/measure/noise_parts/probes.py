"""tr(HΣ) and GᵀHG, the two halves of B_noise, by random-sign noise probes and Hessian products."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from noisescale.errors import SettingError
from noisescale.measure.curvature.eigenpairs import EigenPairs, top_eigenpairs
from noisescale.measure.curvature.products import CurvatureProduct, record_hessian
from noisescale.measure.distributed import Share
from noisescale.measure.gradients.choice import EngineChoice
from noisescale.measure.gradients.engine import Engine, EngineName
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples, Params
from noisescale.statistics.hessian_noise import CurvatureNoise, ProbeBlocks, curvature_noise
from noisescale.statistics.sample import Sample

HESSIAN_GROUPS = 16  # whose spread is H's sampling error: 15 degrees of freedom, t = 2.13
DEFLATED = 10  # eigenvectors taken out of the probes, which hold most of tr(HΣ) of a network
PRODUCTS_PER_VECTOR = 2.5  # spent on them; a control variate need not have converged
GRADIENTS = 3  # times the moments' seconds, that the probes' sums and projections of gradients take
# Of H's examples one in so many has its part in the eigenvectors, where graphs are kept and where
# each product records them anew. Of an MLP those of half of the examples take as much out of the
# probes as all would, of a small GPT those of an eighth
DEFLATING, DEFLATING_ANEW = 2, 8
# A probe is taken with one in so many groups, and a group with one in so many probes, of which
# this many remain at least: the error is of the signs and the examples, hardly of the pairs
CROSSED, FEWEST_CROSSED = 4, 4
PROBE_BYTES = 2**29  # of noise probes that are multiplied at a time, 512 MiB as kept graphs have


def probe_curvature(
    gradients: Objective,
    hessian: Objective,
    *,
    excess: float,
    sample: Sample,
    num_probes: int = 32,
    mean: Tensor | None = None,
    engine: EngineName = "auto",
    metric: Tensor | None = None,
    generator: torch.Generator,
    seconds: float,
    rounds: int = 1,
    report: Callable[[str], None],
) -> CurvatureNoise:
    """|G|², tr(HΣ) and GᵀHG with their joint covariance.

    The n gradients are divided at random into K blocks. In each, u = Σ_i ξ_i (g_i −
    ḡ)·√(n/((n−1)n_b)) with random signs ξ_i: the mean of uᵀHu over blocks and signs is tr(HΣ̂). The
    top eigenvectors v_k serve as a control variate: what they contribute, Σ_k λ_k (u·v_k)², is
    exchanged for its mean over the signs, from the examples' own projections g_i·v_k; so
    unconverged vectors cost precision, not correctness. GᵀHG = ḡᵀHḡ − tr(HΣ)/n, for a data set with
    1/n − 1/N. Of a problem with weights r_i, u is made of r_i·(g_i − G), and GᵀHG takes 2·E[r_i²
    (g_i − G)]ᵀHG/n back, the bias of the weighted mean along HG.

    The eigenvectors are those of half of H's examples. Where the memory does not hold the graphs of
    all, they are of an eighth, each u is multiplied by H on a quarter of the groups, and each group
    has a quarter of the blocks: all would take several times as long for hardly less error.

    Errors: the spread over blocks covers the signs and the sample of gradients, that over groups
    the sample of H. For a data set the former's share of sampling shrinks by 1 − n/N, the latter's
    by 1 − m/N; what cannot be told apart counts in full.

    Args:
        gradients: the objective whose examples give G and Σ.
        hessian: the objective whose examples give H. Unbiased if H does not depend on the choice of
            the former: disjoint examples of a distribution, or independent draws from a data set
            (so too all of it). H is taken on at most 1/16 of its examples at a time.
        excess: tr Σ̂ with 1/(n − 1), which |G|² = |ḡ|² − (1/n − 1/N)·tr Σ̂ takes; of a weighted mean
            what takes its place, see `noisescale.statistics.sample.Excess`.
        sample: of the gradients; H's examples are from the same population.
        num_probes: K, at most half as many as there are gradients.
        mean: ḡ (P,), where it is known.
        engine: of the projections g_i·v.
        metric: a diagonal preconditioner P (P,): all is then of the loss as a function of P^(−½)θ,
            whose gradients are √P g_i and whose Hessian is √P H √P. `excess` is then of √P g_i,
            `mean` still ḡ.
        generator: of every random choice, on the CPU.
        seconds: that the moments of the gradients took.
        rounds: calls of this kind that the announcement is for; none is made for 0.
        report: is told what is being computed, and what it will cost once a product has been timed.

    Raises:
        SettingError: fewer than two probes, or than four gradients.
        MeasurementError: H is not defined, or the memory runs out between two probes.
    """
    num_blocks = _num_blocks(gradients, num_probes)
    in_groups = hessian.on(hessian.examples)
    in_groups.cap_chunk_size(-(-hessian.num_examples // HESSIAN_GROUPS))
    product = CurvatureProduct(in_groups, record_hessian)
    report("mean gradient")
    if mean is None:
        mean = gradients.value_and_gradient()[1]
    root = None if metric is None else metric.sqrt().to(mean)
    mean = _times(root, mean)
    report("a Hessian product")
    image, mean_forms, group_shares = product.with_forms(_times(root, mean))
    image = _times(root, image)
    are_kept = product.num_kept == hessian.num_examples
    crossed = torch.ones(num_blocks, len(group_shares), dtype=torch.bool)
    if not are_kept:
        crossed = _crossed(num_blocks, len(group_shares))
    # whose eigenvectors are sought, in chunks as large as they may be
    num_deflating = -(-hessian.num_examples // (DEFLATING if are_kept else DEFLATING_ANEW))
    deflating = hessian.on(hessian.examples.part(slice(num_deflating)))
    part = CurvatureProduct(deflating, record_hessian)
    share = num_deflating / hessian.num_examples
    part(mean)  # with which its graphs are recorded
    num_products = float(crossed.sum()) / len(group_shares)
    if rounds:
        to_come = DEFLATED * PRODUCTS_PER_VECTOR + num_products / share
        report(_announcement(part, mean, to_come * rounds, rounds, seconds))
    pairs = _deflation(part, root, generator)
    probes = _Probes.after(gradients, product, mean, image, pairs, engine, root)
    blocks = _probe_blocks(probes, crossed, generator, report)
    return curvature_noise(
        blocks,
        squared_norm=float(mean.double().square().sum()) - sample.mean_factor * excess,
        mean_forms=mean_forms.numpy(),
        group_shares=group_shares.numpy(),
        sample=sample,
        hessian_examples=hessian.num_examples,
        num_matvecs=1 + round(pairs.num_matvecs * share + num_products),
    )


def _times(root: Tensor | None, vectors: Tensor) -> Tensor:
    """√P times vectors (..., P); themselves without a preconditioner."""
    return vectors if root is None else root * vectors


def _crossed(num_blocks: int, num_groups: int) -> Tensor:
    """Which of J groups of H's examples each of K blocks' probes is multiplied with, (K, J)."""
    apart = max(min(CROSSED, num_blocks // FEWEST_CROSSED, num_groups // FEWEST_CROSSED), 1)
    numbers = torch.arange(num_blocks)[:, None] + torch.arange(num_groups)
    return numbers % apart == 0


def _num_blocks(gradients: Objective, num_probes: int) -> int:
    """K: as many as there are probes, each of two gradients or more."""
    num_blocks = min(num_probes, gradients.num_examples // 2)
    if num_probes < 2:
        raise SettingError(f"num probes {num_probes}: an error takes at least 2")
    if num_blocks < 2:
        raise SettingError(f"{gradients.num_examples} examples: B_noise takes at least 4")
    return num_blocks


def _probe_blocks(
    probes: _Probes,
    crossed: Tensor,
    generator: torch.Generator,
    report: Callable[[str], None],
) -> ProbeBlocks:
    """A probe of each of K random blocks of the gradients, divided over the processes.

    crossed: which of H's groups each is multiplied with, (K, J).
    """
    num_examples, num_blocks = probes.gradients.num_examples, len(crossed)
    order = torch.randperm(num_examples, generator=generator)
    signs = torch.randint(0, 2, (num_examples,), generator=generator) * 2.0 - 1.0
    share = Share(num_blocks)
    rows_of_blocks = list(torch.arange(num_examples).tensor_split(num_blocks))[share.rows]
    step = max(PROBE_BYTES // probes.mean.nbytes, 1)
    parts = []
    for start in range(0, len(rows_of_blocks), step):
        some = slice(start, start + step)
        last = min(start + step, len(rows_of_blocks))
        report(f"noise probes {start + 1} to {last} of {len(rows_of_blocks)}")
        parts += probes.probe(
            [(order[rows], signs[rows]) for rows in rows_of_blocks[some]],
            crossed[share.rows][some],
        )
    return _gathered(parts, share)


def _gathered(parts: list[ProbeBlocks], share: Share) -> ProbeBlocks:
    """The blocks of every process, in one message: a row for each."""
    rows = share.gather(np.concatenate([np.column_stack(part) for part in parts]))  # (K, 6 + J)
    return ProbeBlocks(
        shares=rows[:, 0],
        on_mean=rows[:, 1],
        on_image=rows[:, 2],
        deflated=rows[:, 3],
        variances=rows[:, 4],
        forms=rows[:, 5:-1],
        weight_bias=rows[:, -1],
    )


@dataclass(frozen=True)
class _Probes:
    """What the noise probes of all blocks have in common."""

    gradients: Objective
    product: CurvatureProduct
    root: Tensor | None  # √P (P,), by which gradients are multiplied; None: by nothing
    mean: Tensor  # ḡ (P,), times √P
    pairs: EigenPairs  # the control variate
    engine: Engine
    directions: list[Params]  # ḡ, Hḡ and the eigenvectors
    centres: np.ndarray  # (2 + k, 1): ḡ along each of them
    relative: Tensor  # r_i (n,) of all gradients, ones where they have no weights
    is_weighted: bool

    @classmethod
    def after(
        cls,
        gradients: Objective,
        product: CurvatureProduct,
        mean: Tensor,
        image: Tensor,
        pairs: EigenPairs,
        engine: EngineName,
        root: Tensor | None,
    ) -> _Probes:
        """Those that follow from the mean gradient, its image Hḡ and the eigenvectors."""
        projector = EngineChoice(engine, gradients).make(gradients)
        vectors = torch.cat([torch.stack([mean, image]), pairs.vectors])  # (2 + k, P)
        return cls(
            gradients=gradients,
            product=product,
            root=root,
            mean=mean,
            pairs=pairs,
            engine=projector,
            directions=[gradients.unflatten(_times(root, vector)) for vector in vectors],
            centres=(vectors.double() @ mean.double()).cpu().numpy()[:, None],
            relative=torch.ones(gradients.num_examples, dtype=torch.float64)
            if (relative := gradients.relative_weights()) is None
            else relative,
            is_weighted=gradients.is_weighted,
        )

    def probe(self, blocks: Sequence[tuple[Tensor, Tensor]], crossed: Tensor) -> list[ProbeBlocks]:
        """Of each of k blocks what it gives (K = 1).

        Args:
            blocks: the indices of its gradients (n_b,) and their signs (n_b,).
            crossed: which of H's groups each is multiplied with, (k, J).
        """
        vectors = torch.stack([self._signed_sum(*block) for block in blocks])  # (k, P)
        forms = self.product.forms(_times(self.root, vectors), crossed).numpy()  # (k, J)
        along = (vectors @ self.pairs.vectors.mT).double().cpu().numpy()  # (k, eigenvectors)
        return [
            self._of_block(indices, forms[row], along[row])
            for row, (indices, _) in enumerate(blocks)
        ]

    def _signed_sum(self, indices: Tensor, signs: Tensor) -> Tensor:
        """The probe u (P,) of a block: of the gradients with these indices, under these signs."""
        num_examples = self.gradients.num_examples
        block = self.gradients.part(self.gradients.examples.subset(indices))
        signs = signs.to(block.point)
        signed_sum = block.weighted_gradients(signs.unsqueeze(0))[1][0]  # Σ_i ξ_i g_i (P,)
        signed_sum = _times(self.root, signed_sum)
        counts = signs.cpu().double() @ self.relative[indices]  # Σ_i ξ_i r_i
        centred = signed_sum - counts.to(signs) * self.mean
        probe: Tensor = centred * (num_examples / (num_examples - 1) / len(indices)) ** 0.5
        return probe

    def _of_block(self, indices: Tensor, forms: np.ndarray, along: np.ndarray) -> ProbeBlocks:
        """One block by its probe's forms (J,) and inner products with the eigenvectors."""
        num_examples, values = self.gradients.num_examples, self.pairs.values.numpy()
        unbiased = num_examples / (num_examples - 1)
        block = self.gradients.part(self.gradients.examples.subset(indices))
        projections = _projections(block, self.engine, self.directions)  # (2 + k, n_b)
        counts = self.relative[indices].numpy()  # of d_i = r_i·(g_i − G)
        deviations = projections - counts * self.centres  # (2 + k, n_b)
        variances = unbiased * (deviations**2).mean(1)[2:]  # (k,)
        on_mean, on_image = deviations[:2].mean(1) + self.centres[:2, 0]
        bias = unbiased * float((counts * deviations[1]).mean()) if self.is_weighted else 0.0
        return ProbeBlocks(
            shares=np.array([len(indices) / num_examples]),
            on_mean=np.array([on_mean]),
            on_image=np.array([on_image]),
            deflated=np.array([values @ along**2]),
            variances=np.array([values @ variances]),
            forms=forms[None],  # (1, J)
            weight_bias=np.array([bias]),
        )


def _projections(objective: Objective, engine: Engine, directions: list[Params]) -> np.ndarray:
    """g_i·v of the objective's examples, for D directions v: (D, n)."""
    chunks: list[Tensor] = []

    def add(chunk: Examples, start: int) -> None:
        chunks.append(engine.projections(chunk, directions).sum(-1).cpu())  # (D, B)

    objective.for_each_chunk(add)
    projections: np.ndarray = torch.cat(chunks, 1).numpy()
    return projections


def _announcement(
    part: CurvatureProduct, mean: Tensor, num_products: float, rounds: int, seconds: float
) -> str:
    """What eigenvectors and probes will cost, by a product that is timed for it.

    part: whose graphs are recorded. num_products: with it, about, or as many examples. seconds:
    that the moments of the gradients took.
    """
    begun = time.perf_counter()
    part(mean)
    timed = time.perf_counter() - begun
    to_come = rounds * GRADIENTS * seconds + timed * num_products
    return (
        f"Optional, --hessian: about {to_come:.0f} s, {to_come / (to_come + seconds):.0%} of the "
        "whole. Ctrl-C prints the result without it."
    )


def _deflation(
    product: CurvatureProduct, root: Tensor | None, generator: torch.Generator
) -> EigenPairs:
    """The eigenvectors of √P H √P with the largest |λ|, roughly."""
    whole = product.objective
    k = min(DEFLATED, whole.dim)
    return top_eigenpairs(
        product if root is None else lambda vector: root * product(root * vector),
        dim=whole.dim,
        k=k,
        which="magnitude",
        rtol=0.1,  # of a control variate: a tenth off costs a hundredth of what it saves
        max_matvecs=min(round(PRODUCTS_PER_VECTOR * k), whole.dim) + 1,
        dtype=whole.dtype,
        device=whole.device,
        generator=generator,
    )
