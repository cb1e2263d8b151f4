"""tr(HΣ) and GᵀHG, the two halves of B_noise, by random-sign noise probes and Hessian products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from noisescale.errors import MeasurementError, SettingError
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


def probe_curvature(
    gradients: Objective,
    hessian: Objective,
    *,
    variance: float,
    sample: Sample,
    num_probes: int = 32,
    engine: EngineName = "auto",
    generator: torch.Generator,
    report: Callable[[str], None],
) -> CurvatureNoise:
    """|G|², tr(HΣ) and GᵀHG with their joint covariance.

    The n gradients are divided at random into K blocks. In each, u = Σ_i ξ_i (g_i −
    ḡ)·√(n/((n−1)n_b)) with random signs ξ_i: the mean of uᵀHu over blocks and signs is tr(HΣ̂). The
    top eigenvectors v_k serve as a control variate: what they contribute, Σ_k λ_k (u·v_k)², is
    exchanged for its mean over the signs, from the examples' own projections g_i·v_k; so
    unconverged vectors cost precision, not correctness. GᵀHG = ḡᵀHḡ − tr(HΣ)/n, for a data set with
    1/n − 1/N.

    Errors: the spread over blocks covers the signs and the sample of gradients, that over 16 groups
    of its examples the sample of H. For a data set the former's share of sampling shrinks by 1 −
    n/N, the latter's by 1 − m/N; what cannot be told apart counts in full.

    Args:
        gradients: the objective whose examples give G and Σ.
        hessian: the objective whose examples give H. Unbiased if H does not depend on the choice of
            the former: disjoint examples of a distribution, or independent draws from a data set
            (so too all of it). H is taken on at most 1/16 of its examples at a time.
        variance: tr Σ̂ with 1/(n − 1), which |G|² = |ḡ|² − (1/n − 1/N)·tr Σ̂ takes.
        sample: of the gradients; H's examples are from the same population.
        num_probes: K, of which each takes one product; at most half as many as there are gradients.
        engine: of the projections g_i·v.
        generator: of every random choice, on the CPU.
        report: is told what is being computed.

    Raises:
        SettingError: fewer than two probes, or than four gradients.
        MeasurementError: H is not defined, or the memory runs out between two probes.
    """
    num_blocks = _num_blocks(gradients, num_probes)
    hessian.cap_chunk_size(-(-hessian.num_examples // HESSIAN_GROUPS))
    product = CurvatureProduct(hessian, record_hessian)
    report("mean gradient")
    mean = gradients.value_and_gradient()[1]
    image, mean_forms, group_shares = product.with_forms(mean)
    report("eigenvectors")
    pairs = _deflation(product, generator)
    probes = _Probes.after(gradients, product, mean, image, pairs, engine)
    blocks = _probe_blocks(probes, num_blocks, generator, report)
    if blocks.forms.shape[1] != len(group_shares):
        raise MeasurementError(
            "the memory ran out between noise probes: give fewer --hessian-examples"
        )
    return curvature_noise(
        blocks,
        squared_norm=float(mean.double().square().sum()) - sample.mean_factor * variance,
        mean_forms=mean_forms.numpy(),
        group_shares=group_shares.numpy(),
        sample=sample,
        hessian_examples=hessian.num_examples,
        num_matvecs=1 + pairs.num_matvecs + num_blocks,
    )


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
    num_blocks: int,
    generator: torch.Generator,
    report: Callable[[str], None],
) -> ProbeBlocks:
    """A probe of each of K random blocks of the gradients, divided over the processes."""
    num_examples = probes.gradients.num_examples
    order = torch.randperm(num_examples, generator=generator)
    signs = torch.randint(0, 2, (num_examples,), generator=generator) * 2.0 - 1.0
    share = Share(num_blocks)
    rows_of_blocks = list(torch.arange(num_examples).tensor_split(num_blocks))[share.rows]
    parts = []
    for number, rows in enumerate(rows_of_blocks):
        report(f"noise probe {number + 1} of {len(rows_of_blocks)}")
        parts.append(probes.probe(order[rows], signs[rows]))
    return _gathered(parts, share)


def _gathered(parts: list[ProbeBlocks], share: Share) -> ProbeBlocks:
    """The blocks of every process, in one message: a row for each, the forms last."""
    rows = share.gather(np.concatenate([np.column_stack(part) for part in parts]))  # (K, 5 + J)
    return ProbeBlocks(
        shares=rows[:, 0],
        on_mean=rows[:, 1],
        on_image=rows[:, 2],
        deflated=rows[:, 3],
        variances=rows[:, 4],
        forms=rows[:, 5:],
    )


@dataclass(frozen=True)
class _Probes:
    """What the noise probes of all blocks have in common."""

    gradients: Objective
    product: CurvatureProduct
    mean: Tensor  # ḡ (P,)
    pairs: EigenPairs  # the control variate
    engine: Engine
    directions: list[Params]  # ḡ, Hḡ and the eigenvectors
    centres: np.ndarray  # (2 + k, 1): ḡ along each of them

    @classmethod
    def after(
        cls,
        gradients: Objective,
        product: CurvatureProduct,
        mean: Tensor,
        image: Tensor,
        pairs: EigenPairs,
        engine: EngineName,
    ) -> _Probes:
        """Those that follow from the mean gradient, its image Hḡ and the eigenvectors."""
        projector = EngineChoice(engine, gradients).make(gradients)
        vectors = torch.cat([torch.stack([mean, image]), pairs.vectors])  # (2 + k, P)
        return cls(
            gradients=gradients,
            product=product,
            mean=mean,
            pairs=pairs,
            engine=projector,
            directions=[gradients.unflatten(vector) for vector in vectors],
            centres=(vectors.double() @ mean.double()).cpu().numpy()[:, None],
        )

    def probe(self, indices: Tensor, signs: Tensor) -> ProbeBlocks:
        """One block (K = 1): the gradients with these indices (n_b,), under these signs (n_b,)."""
        num_examples, values = self.gradients.num_examples, self.pairs.values.numpy()
        unbiased = num_examples / (num_examples - 1)
        block = self.gradients.on(self.gradients.examples.subset(indices))
        signs = signs.to(block.point)
        signed_sum = block.weighted_gradients(signs.unsqueeze(0))[1][0]  # Σ_i ξ_i g_i (P,)
        centred = signed_sum - signs.sum() * self.mean
        probe = centred * (unbiased / len(indices)) ** 0.5
        forms = self.product.with_forms(probe)[1].numpy()  # (J,)
        along = (self.pairs.vectors @ probe).double().cpu().numpy()  # (k,)
        projections = _projections(block, self.engine, self.directions)  # (2 + k, n_b)
        variances = unbiased * ((projections - self.centres) ** 2).mean(1)[2:]  # (k,)
        on_mean, on_image = projections[:2].mean(1)
        return ProbeBlocks(
            shares=np.array([len(indices) / num_examples]),
            on_mean=np.array([on_mean]),
            on_image=np.array([on_image]),
            deflated=np.array([values @ along**2]),
            variances=np.array([values @ variances]),
            forms=forms[None],  # (1, J)
        )


def _projections(objective: Objective, engine: Engine, directions: list[Params]) -> np.ndarray:
    """g_i·v of the objective's examples, for D directions v: (D, n)."""
    chunks: list[Tensor] = []

    def add(chunk: Examples, start: int) -> None:
        chunks.append(engine.projections(chunk, directions).sum(-1).cpu())  # (D, B)

    objective.for_each_chunk(add)
    projections: np.ndarray = torch.cat(chunks, 1).numpy()
    return projections


def _deflation(product: CurvatureProduct, generator: torch.Generator) -> EigenPairs:
    """The eigenvectors of H with the largest |λ|, roughly."""
    objective = product.objective
    k = min(DEFLATED, objective.dim)
    return top_eigenpairs(
        product,
        dim=objective.dim,
        k=k,
        which="magnitude",
        rtol=0.1,  # of a control variate: a tenth off costs a hundredth of what it saves
        max_matvecs=min(round(PRODUCTS_PER_VECTOR * k), objective.dim) + 1,
        dtype=objective.dtype,
        device=objective.device,
        generator=generator,
    )
