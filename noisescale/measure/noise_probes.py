"""tr(HΣ) and GᵀHG, the two halves of B_noise, by random-sign noise probes and Hessian products."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.curvature.eigenpairs import EigenPairs, top_eigenpairs
from noisescale.measure.curvature.products import CurvatureProduct, record_hessian
from noisescale.measure.distributed import Share
from noisescale.measure.gradients.engine import Engine, EngineName
from noisescale.measure.gradients.moments import PROBE, choose_engine
from noisescale.measure.objective import Objective
from noisescale.problems.problem import Examples, Params
from noisescale.statistics.hessian_noise import CurvatureNoise, curvature_noise
from noisescale.statistics.sample import Population

HESSIAN_GROUPS = 16  # whose spread is H's sampling error
DEFLATED = 10  # eigenvectors taken out of the probes
PRODUCTS_PER_VECTOR = 2.5  # spent on them; a control variate need not have converged


def probe_curvature(
    gradients: Objective,
    hessian: Objective,
    *,
    squared_gradient_norm: Callable[[Tensor], float],
    population: Population,
    population_size: int,
    num_probes: int = 32,
    engine: EngineName = "auto",
    generator: torch.Generator,
    report: Callable[[str], None] = lambda activity: None,
) -> CurvatureNoise:
    """|G|², tr(HΣ) and GᵀHG with their joint covariance.

    gradients, hessian: the objectives whose examples give G and Σ, and H. Unbiased if H does not depend on
        the choice of the former: disjoint examples of a distribution, or independent draws from a data set
        (so too all of it). H is taken on at most 1/16 of its examples at a time.
    squared_gradient_norm: ḡ -> |G|². num_probes: K, of which each takes one product.

    The n gradients are divided at random into K blocks. In each, u = Σ_i ξ_i (g_i − ḡ)·√(n/((n−1)n_b)) with
    random signs ξ_i: the mean of uᵀHu over blocks and signs is tr(HΣ̂). The top eigenvectors v_k serve as a
    control variate: what they contribute, Σ_k λ_k (u·v_k)², is exchanged for its mean over the signs, from
    the examples' own projections g_i·v_k; so unconverged vectors cost precision, not correctness.
    GᵀHG = ḡᵀHḡ − tr(HΣ)/n, for a data set with 1/n − 1/N.

    Errors: the spread over blocks covers the signs and the sample of gradients, that over 16 groups of its
    examples the sample of H. For a data set the former's share of sampling shrinks by 1 − n/N, the latter's
    by 1 − m/N; what cannot be told apart counts in full.
    """
    num_examples = gradients.num_examples
    num_blocks = min(num_probes, num_examples // 2)
    if num_probes < 2:
        raise SettingError(f"num probes {num_probes}: an error takes at least 2")
    if num_blocks < 2:
        raise SettingError(f"{num_examples} examples: B_noise takes at least 4")
    hessian.cap_chunk_size(-(-hessian.num_examples // HESSIAN_GROUPS))
    product = CurvatureProduct(hessian, record_hessian)
    report("mean gradient")
    mean = gradients.value_and_gradient()[1]
    image, mean_forms, shares = product.with_forms(mean)
    report("eigenvectors")
    pairs = _deflation(product, generator)
    values = pairs.values.numpy()
    order = torch.randperm(num_examples, generator=generator)
    signs = torch.randint(0, 2, (num_examples,), generator=generator) * 2.0 - 1.0
    share = Share(num_blocks)
    blocks = list(torch.arange(num_examples).tensor_split(num_blocks))[share.rows]
    projector, _ = choose_engine(engine, gradients, gradients.examples.part(slice(PROBE)))
    vectors = torch.cat([torch.stack([mean, image]), pairs.vectors])
    directions = [gradients.unflatten(vector) for vector in vectors]
    centres = (vectors.double() @ mean.double()).cpu().numpy()[:, None]
    unbiased = num_examples / (num_examples - 1)
    rows = []
    for number, block in enumerate(blocks):
        report(f"noise probe {number + 1} of {len(blocks)}")
        examples = gradients.examples.part(order[block].to(gradients.examples.targets.device))
        within = gradients.on(examples)
        sign = signs[block].to(within.point)
        noise = within.weighted_gradients(sign.unsqueeze(0))[1][0]
        probe = (noise - sign.sum() * mean) * (unbiased / len(block)) ** 0.5
        forms = product.with_forms(probe)[1].numpy()
        if len(forms) != len(shares):
            raise MeasurementError(
                "the memory ran out between noise probes: give fewer --hessian-examples"
            )
        along = (pairs.vectors @ probe).double().cpu().numpy()
        projections = _projections(within, projector, directions)  # (2 + K, n_b)
        variances = unbiased * ((projections - centres) ** 2).mean(1)[2:]
        of_mean = projections[:2].mean(1)
        rows.append(
            [len(block) / num_examples, *of_mean, values @ along**2, values @ variances, *forms]
        )
    table = share.gather(np.array(rows, dtype=np.float64).reshape(len(blocks), 5 + len(shares)))
    return curvature_noise(
        table,
        squared_norm=squared_gradient_norm(mean),
        mean_forms=mean_forms.numpy(),
        shares=shares.numpy(),
        population=population,
        population_size=population_size,
        num_examples=num_examples,
        hessian_examples=hessian.num_examples,
        num_matvecs=1 + pairs.num_matvecs + num_blocks,
    )


def _projections(objective: Objective, engine: Engine, directions: list[Params]) -> np.ndarray:
    """g_i·v of the objective's examples, for K directions v: (K, n)."""
    found: list[Tensor] = []

    def add(chunk: Examples, start: int) -> None:
        found.append(engine.projections(chunk, directions).sum(-1).cpu())

    objective.for_each_chunk(add)
    projections: np.ndarray = torch.cat(found, 1).numpy()
    return projections


def _deflation(product: CurvatureProduct, generator: torch.Generator) -> EigenPairs:
    objective = product.objective
    k = min(DEFLATED, objective.dim)
    return top_eigenpairs(
        product,
        dim=objective.dim,
        k=k,
        which="magnitude",
        rtol=0.1,
        max_matvecs=min(round(PRODUCTS_PER_VECTOR * k), objective.dim) + 1,
        dtype=objective.dtype,
        device=objective.device,
        generator=generator,
    )
