"""Trace, Frobenius norm and density on known spectra."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from noisescale.errors import SettingError
from noisescale.measure.curvature.products import hessian_matvec
from noisescale.measure.curvature.spectrum import spectral_density, spectral_moments
from noisescale.problems.models import cross_entropy
from noisescale.problems.problem import Examples, Problem
from tests.helpers.problems import seeded, symmetric

DOUBLE = torch.float64


def test_trace_and_frobenius_norm_cover_the_truth_95_times_in_100():
    matrix = symmetric([50.0, 20.0, -30.0], dim=100, bulk=(-1.0, 3.0))
    truths = {
        "trace": matrix.trace().item(),
        "squared_frobenius_norm": matrix.square().sum().item(),
    }
    runs = [
        spectral_moments(
            lambda v: matrix @ v,
            dim=100,
            num_matvecs=18,
            dtype=DOUBLE,
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in range(400)
    ]
    for name, truth in truths.items():
        estimates = [getattr(run, name) for run in runs]
        hits = np.mean([one.low <= truth <= one.high for one in estimates])
        assert abs(hits - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 400)
        errors = np.array([one.value - truth for one in estimates])
        assert abs(errors.mean()) < 4 * errors.std() / math.sqrt(400)  # unbiased
        # and the errors are as large as they say
        assert np.mean([one.stderr**2 for one in estimates]) == pytest.approx(errors.var(), rel=0.3)


def test_the_sketch_accounts_for_what_leaves_it():
    """|HQᵀ|² is |T|² and the square of the last coupling, here larger than the probes' error."""
    matrix = symmetric([], dim=8)
    truth = matrix.square().sum().item()
    values = [
        spectral_moments(
            lambda v: matrix @ v,
            dim=8,
            num_matvecs=9,
            dtype=DOUBLE,
            generator=torch.Generator().manual_seed(seed),
        ).squared_frobenius_norm.value
        for seed in range(1000)
    ]
    assert abs(np.mean(values) - truth) < 4 * np.std(values) / math.sqrt(1000)


def test_the_outliers_do_not_enter_the_error():
    matrix = symmetric([1e4, -1e3], dim=100)
    found = spectral_moments(lambda v: matrix @ v, dim=100, num_matvecs=30, dtype=DOUBLE)
    assert found.trace.stderr < 10
    assert found.squared_frobenius_norm.stderr < 10


def test_a_space_that_is_spanned_leaves_no_error():
    matrix = symmetric([5.0, -2.0], dim=8)
    found = spectral_moments(lambda v: matrix @ v, dim=8, num_matvecs=30, dtype=DOUBLE)
    assert found.trace.value == pytest.approx(matrix.trace().item(), rel=1e-12)
    assert found.squared_frobenius_norm.value == pytest.approx(
        matrix.square().sum().item(), rel=1e-12
    )
    assert found.trace.stderr == found.squared_frobenius_norm.stderr == 0


def test_the_density_has_mass_one_and_the_moments_of_the_spectrum():
    matrix = symmetric([50.0, 20.0, -30.0], dim=100)
    density = spectral_density(
        lambda v: matrix @ v, dim=100, num_probes=200, num_steps=10, dtype=DOUBLE
    )
    np.testing.assert_allclose(density.weights.sum(1), 1, rtol=1e-10)
    grid, width = density.default_grid(4000)
    assert np.trapezoid(density.smoothed(grid, width=width), grid) == pytest.approx(1, abs=1e-3)
    for power in (1, 2, 3):
        truth = (torch.linalg.eigvalsh(matrix) ** power).mean().item()
        moments = (density.weights * density.nodes**power).sum(1)
        assert abs(moments.mean() - truth) < 4 * moments.std() / math.sqrt(200)


def test_the_density_of_two_eigenvalues_is_two_peaks():
    diagonal = torch.cat([torch.full((30,), 2.0), torch.full((70,), -1.0)]).double()
    density = spectral_density(
        lambda v: diagonal * v, dim=100, num_probes=100, num_steps=5, dtype=DOUBLE
    )
    upper = density.nodes > 0.5
    np.testing.assert_allclose(density.nodes[density.weights > 1e-8].max(), 2, rtol=1e-10)
    mass = (density.weights * upper).sum(1)
    assert abs(mass.mean() - 0.3) < 4 * mass.std() / 10


def test_reorthogonalisation_keeps_ghosts_out():
    """Lanczos without it finds copies of converged eigenvalues, which would count twice."""
    diagonal = torch.cat([torch.tensor([1e4]), torch.linspace(0, 1, 199)])
    density = spectral_density(lambda v: diagonal * v, dim=200, num_probes=1, num_steps=40)
    assert (density.nodes > 1e3).sum() == 1


def test_too_few_products_are_refused():
    with pytest.raises(SettingError, match="at least 6"):
        spectral_moments(lambda v: v, dim=10, num_matvecs=5)
    with pytest.raises(SettingError, match="num probes 0"):
        spectral_density(lambda v: v, dim=10, num_probes=0)


def test_the_trace_of_a_softmax_is_found_whatever_the_signs_are():
    """Of two classes a quarter of all signs, alike for both, lies in the Hessian's null space."""
    inputs = torch.randn(20, 1, dtype=DOUBLE)
    model = nn.Linear(1, 2, bias=False).double()
    examples = Examples(inputs, (inputs[:, 0] > 0).long())
    problem = Problem(model=model, loss=cross_entropy, train=examples)
    shares = problem.model(inputs).softmax(1).detach()
    expected = float(((shares * (1 - shares)).sum(1) * inputs[:, 0].square()).mean())
    for seed in range(12):
        moments = spectral_moments(hessian_matvec(problem), generator=seeded(seed))
        assert moments.trace.value == pytest.approx(expected, rel=1e-10)
