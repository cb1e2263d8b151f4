"""Eigenpairs of known spectra: right, or marked as not converged."""

import math

import pytest
import torch

import noisescale.measure.curvature.eigenpairs as eigenpairs
from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.curvature.eigenpairs import top_eigenpairs
from noisescale.measure.curvature.products import hessian_matvec
from tests.helpers.problems import classification, symmetric

DIM = 120


def solve(matrix, **options):
    dtype = options.setdefault("dtype", torch.float64)
    return top_eigenpairs(lambda v: matrix.to(dtype) @ v, dim=len(matrix), **options)


@pytest.mark.parametrize("method", ["lanczos", "power"])
@pytest.mark.parametrize(
    ("extremes", "which", "expected"),
    [
        ([50.0, 48.0], "largest", 50.0),  # stopping on the change returns a value between the two
        ([-52.0, 50.0], "largest", 50.0),  # the largest in magnitude is the smallest
        ([-52.0, 50.0], "smallest", -52.0),
        ([-52.0, 50.0], "magnitude", -52.0),
        ([-50.0, 50.0], "largest", 50.0),  # equal in magnitude: plain power iteration never settles
        ([-50.0, 50.0], "smallest", -50.0),
        ([-5.0, -9.0], "smallest", -9.0),
    ],
)
def test_the_asked_end_of_the_spectrum_is_found(method, extremes, which, expected):
    pairs = solve(symmetric(extremes, dim=DIM), which=which, method=method, max_matvecs=1000)
    assert pairs.converged
    assert pairs.values.tolist() == pytest.approx([expected], rel=1e-3)


@pytest.mark.parametrize("method", ["lanczos", "power"])
def test_a_negative_definite_matrix_has_a_negative_largest_eigenvalue(method):
    matrix = symmetric([-2.0, -9.0], dim=20, bulk=(-8.0, -3.0))
    pairs = solve(matrix, method=method, max_matvecs=2000)
    assert pairs.converged
    assert pairs.values.tolist() == pytest.approx([-2], rel=1e-3)


@pytest.mark.parametrize("method", ["lanczos", "power"])
@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
def test_several_pairs_come_in_order_with_their_true_residuals(method, which):
    extremes = [50.0, 48.0, 20.0, -30.0, -25.0, -10.0]
    matrix = symmetric(extremes, dim=DIM)
    pairs = solve(matrix, k=3, which=which, method=method, max_matvecs=3000)
    keys = {"largest": lambda v: -v, "smallest": lambda v: v, "magnitude": lambda v: -abs(v)}
    assert pairs.converged
    assert pairs.values.tolist() == pytest.approx(sorted(extremes, key=keys[which])[:3], rel=1e-3)
    true = (pairs.vectors @ matrix - pairs.values.unsqueeze(1) * pairs.vectors).norm(dim=1)
    torch.testing.assert_close(pairs.residuals, true, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(pairs.vectors @ pairs.vectors.T, torch.eye(3, dtype=torch.float64))


def test_power_finds_every_copy_of_a_multiple_eigenvalue():
    pairs = solve(symmetric([50.0, 50.0, 30.0], dim=DIM), k=3, method="power", max_matvecs=2000)
    assert pairs.values.tolist() == pytest.approx([50, 50, 30], rel=1e-3)


@pytest.mark.parametrize("method", ["lanczos", "power"])
@pytest.mark.parametrize("k", [1, 3])
def test_what_has_not_converged_is_marked_and_keeps_to_the_budget(method, k):
    calls = 0
    matrix = symmetric([1.02, 1.01], dim=DIM)

    def matvec(vector):
        nonlocal calls
        calls += 1
        return matrix @ vector

    pairs = top_eigenpairs(matvec, dim=DIM, k=k, method=method, max_matvecs=6, dtype=torch.float64)
    assert calls == pairs.num_matvecs == 6
    assert len(pairs.values) == k
    assert not pairs.converged
    assert (pairs.residuals[~pairs.converged_each] > pairs.tolerances[~pairs.converged_each]).all()


def test_restarts_reach_what_an_unbounded_basis_reaches(monkeypatch):
    matrix = symmetric([1.05, 1.02], dim=DIM)
    free = solve(matrix, k=2, rtol=1e-6)
    monkeypatch.setattr(eigenpairs, "BASIS_BYTES", 0)  # a basis of 2k + 8 vectors
    restarted = solve(matrix, k=2, rtol=1e-6, max_matvecs=1000)
    assert restarted.converged
    assert restarted.num_matvecs > 3 * 12
    torch.testing.assert_close(restarted.values, free.values, rtol=1e-8, atol=0)


def test_a_small_basis_finds_a_smallest_eigenvalue_beside_large_ones_of_the_other_end(monkeypatch):
    """As of a network's Hessian: outliers up to 21, and −.44 at the dense other end.

    Restarts from the wanted end alone, and a rival told by residuals in units of λ_min, which those
    of the middle of the spectrum always reach, never ended here.
    """
    spectrum = torch.randn(2000, generator=torch.Generator().manual_seed(1)).double() * 0.06
    spectrum[:30] = 21 / torch.arange(1, 31) ** 1.1
    spectrum[30:60] = -0.4435 * (1 - 0.025 * torch.arange(30) ** 0.7)
    options = {"dim": len(spectrum), "which": "smallest", "dtype": torch.float64}
    monkeypatch.setattr(eigenpairs, "BASIS_BYTES", 0)  # ten vectors
    pairs = top_eigenpairs(lambda v: spectrum * v, max_matvecs=150, **options)
    assert pairs.converged
    assert pairs.num_matvecs < 130  # 80 to 98 of three other seeds
    assert pairs.values.item() == pytest.approx(-0.4435, rel=1e-4)


def test_the_whole_spectrum_of_a_small_matrix_is_exact():
    matrix = symmetric([5.0, -3.0], dim=6)
    pairs = solve(matrix, k=6)
    torch.testing.assert_close(pairs.values, torch.linalg.eigvalsh(matrix).flip(0))
    assert pairs.converged
    assert solve(torch.zeros(4, 4, dtype=torch.float64), k=2).values.tolist() == [0, 0]


def test_float32_reaches_the_tolerance_and_no_further():
    matrix = symmetric([50.0, 48.0], dim=DIM)
    pairs = solve(
        matrix, dtype=torch.float32, rtol=1e-9
    )  # beyond float32: rounding sets the tolerance
    assert pairs.converged
    assert 1e-9 * 50 < pairs.tolerances.item() < 1e-3
    assert pairs.values.item() == pytest.approx(50, rel=1e-5)


def test_a_warm_start_saves_products_and_sees_what_has_overtaken():
    generator = torch.Generator().manual_seed(3)
    change = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64)
    matrix = symmetric([50.0, 40.0, 35.0, 30.0, 20.0, 15.0, 10.0], dim=DIM)
    later = matrix + 0.02 * (change + change.T)
    earlier = solve(matrix)
    assert solve(later, start=earlier.warm_start).num_matvecs < solve(later).num_matvecs
    # the eigenvector started from is still one, though not the top's: its residual is zero at once
    overtaken = symmetric([50.0, 60.0, 35.0, 30.0, 20.0, 15.0, 10.0], dim=DIM)
    exact = torch.linalg.eigh(matrix)[1][:, -1]
    assert (overtaken @ exact - 50 * exact).norm() < 1e-9
    assert solve(overtaken, start=exact).values.item() == pytest.approx(60, rel=1e-3)
    assert solve(overtaken, start=earlier.warm_start).values.item() == pytest.approx(60, rel=1e-3)


def test_an_overtaken_eigenvector_as_the_start_is_mostly_found_out():
    """Seen on MNIST: λ = 8.09 to a residual of 5e-4 in ten products, where the largest is 8.41.

    From the eigenvector of 8.09 itself 15 of these 60 searches end there without patience, 3 with.
    """
    outliers = torch.tensor(
        [8.41, 8.09, 6.35, 5.5, 4.9, 4.4, 3.9, 3.3, 2.6, 1.5], dtype=torch.float64
    )
    misses = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        bulk = 0.03 * torch.randn(300, generator=generator, dtype=torch.float64)
        matrix = torch.diag(torch.cat([outliers, bulk]))
        start = torch.eye(310, dtype=torch.float64)[1]
        misses += solve(matrix, start=start, generator=generator).values.item() < 8.3
    assert misses <= 6


def test_an_eigenvalue_of_a_hessian_is_that_of_the_dense_matrix():
    problem = classification()
    dim = sum(param.numel() for param in problem.model.parameters())
    matvec = hessian_matvec(problem)
    values = torch.linalg.eigvalsh(
        torch.stack([matvec(unit) for unit in torch.eye(dim, dtype=torch.float64)])
    )
    for which, expected in (("largest", values[-1]), ("smallest", values[0])):
        pairs = top_eigenpairs(matvec, dim=dim, which=which, rtol=1e-8, dtype=torch.float64)
        assert pairs.values.item() == pytest.approx(expected.item(), rel=1e-8)


def test_bad_arguments_are_refused_with_what_is_allowed():
    matrix = symmetric([5.0], dim=4)
    for options, message in (
        ({"k": 5}, r"k = 5: the matrix has P = 4"),
        ({"k": 0}, "k = 0"),
        ({"which": "biggest"}, "choose which of largest, smallest, magnitude"),
        ({"method": "qr"}, "lanczos, power"),
        ({"rtol": 0.0}, "rtol 0.0"),
        ({"rtol": math.nan}, "rtol nan"),
        ({"k": 3, "max_matvecs": 2}, "3 eigenpairs take at least 3"),
        ({"start": torch.zeros(4)}, "not zero"),
        ({"start": torch.ones(5)}, "of length P = 4"),
    ):
        with pytest.raises(SettingError, match=message):
            solve(matrix, **options)
    with pytest.raises(MeasurementError, match="not finite"):
        solve(matrix * math.nan)


@pytest.mark.parametrize("method", ["lanczos", "power"])
@pytest.mark.parametrize("scale", [1e-30, 1e-13, 1e13])
def test_a_matrix_of_any_scale_has_its_eigenvalues(method, scale):
    matrix = symmetric([9.0, 6.0], dim=DIM)
    for dtype in (torch.float64, torch.float32):
        pairs = solve(scale * matrix, k=2, method=method, dtype=dtype, max_matvecs=1000)
        assert pairs.converged
        assert pairs.values.tolist() == pytest.approx([9 * scale, 6 * scale], rel=1e-3)
        assert (pairs.residuals <= pairs.tolerances).all()


@pytest.mark.parametrize("method", ["lanczos", "power"])
def test_a_matrix_of_zeros_has_the_eigenvalue_zero(method):
    pairs = solve(torch.zeros(DIM, DIM), method=method)
    assert pairs.converged
    assert pairs.values.tolist() == [0.0]
