"""The Krylov basis: orthonormal, a true projection, and watchful."""

import pytest
import torch

from noisescale.errors import MeasurementError
from noisescale.measure.curvature.krylov import Krylov
from tests.helpers.problems import symmetric


def grown(matrix, steps, *, dtype=torch.float64, capacity=40):
    generator = torch.Generator().manual_seed(1)

    def random():
        return torch.randn(len(matrix), generator=generator, dtype=dtype)

    krylov = Krylov(lambda v: matrix.to(dtype) @ v, random(), capacity=capacity, random=random)
    for _ in range(steps):
        krylov.step()
    return krylov


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_the_basis_is_orthonormal_and_the_projection_true(dtype, tolerance):
    matrix = symmetric([50.0, 48.0, -30.0], dim=80)
    krylov = grown(matrix, 30, dtype=dtype)
    basis = krylov.basis.double()
    torch.testing.assert_close(
        basis @ basis.T, torch.eye(30, dtype=torch.float64), rtol=0, atol=tolerance
    )
    torch.testing.assert_close(
        krylov.projection, basis @ matrix @ basis.T, rtol=0, atol=50 * tolerance
    )


def test_residuals_are_those_of_the_ritz_vectors_before_and_after_a_restart():
    matrix = symmetric([50.0, 48.0, -30.0], dim=80)
    krylov = grown(matrix, 12)
    for _ in range(2):
        values, coordinates, residuals = krylov.ritz()
        vectors = krylov.vectors(coordinates)
        true = (vectors @ matrix - values.unsqueeze(1) * vectors).norm(dim=1)
        torch.testing.assert_close(residuals, true, rtol=1e-6, atol=1e-9)
        krylov.restart(torch.tensor([8, 7, 6, 0]))
        for _ in range(5):
            krylov.step()


def test_an_invariant_subspace_is_left_by_a_random_direction():
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.0, 5.0], dtype=torch.float64))
    start = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)  # an eigenvector
    generator = torch.Generator().manual_seed(0)

    def random():
        return torch.randn(4, generator=generator, dtype=torch.float64)

    krylov = Krylov(lambda v: matrix @ v, start, capacity=10, random=random)
    for _ in range(4):
        krylov.step()
    assert krylov.ritz()[0].tolist() == pytest.approx([1, 1, 1, 5])


def test_slight_asymmetry_is_part_of_the_residuals_or_an_error():
    matrix = symmetric([50.0], dim=40)
    skew = torch.triu(torch.ones(40, 40, dtype=torch.float64))
    slight = grown(matrix + 1e-9 * skew, 10)
    values, coordinates, residuals = slight.ritz()
    vectors = slight.vectors(coordinates)
    true = ((matrix + 1e-9 * skew) @ vectors.T - vectors.T * values).norm(dim=0)
    assert (true <= 10 * residuals).all()
    assert residuals.min() >= slight.mismatch > 1e-10
    with pytest.raises(MeasurementError, match="not those of one symmetric matrix"):
        grown(matrix + 1e-4 * skew, 10)


def test_a_random_or_asymmetric_product_is_noticed():
    matrix = symmetric([50.0], dim=40)
    generator = torch.Generator().manual_seed(0)

    def dropout(vector):
        mask = torch.rand(40, generator=generator, dtype=torch.float64) < 0.9
        return matrix @ (vector * mask)

    def random():
        return torch.randn(40, generator=generator, dtype=torch.float64)

    for matvec in (dropout, lambda v: torch.triu(matrix) @ v):
        krylov = Krylov(matvec, random(), capacity=10, random=random)
        krylov.step()
        with pytest.raises(MeasurementError, match="not those of one symmetric matrix"):
            krylov.step()
