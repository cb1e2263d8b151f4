"""Operators that know their space, and bare functions that have to be described."""

import numpy as np
import pytest
import torch

from noisescale.errors import SettingError
from noisescale.measure.curvature.eigenpairs import top_eigenpairs
from noisescale.measure.curvature.operators import Operator, space_of
from noisescale.measure.curvature.products import ggn_matvec, hessian_matvec
from noisescale.measure.curvature.spectrum import spectral_density, spectral_moments
from tests.helpers.problems import classification

NUM_PARAMS = 83  # of the small classification network
SOLVERS = [top_eigenpairs, spectral_moments, spectral_density]
CPU = torch.device("cpu")


def numbers(found):
    """What a solver has found, as arrays that can be compared."""
    if hasattr(found, "nodes"):
        return found.nodes, found.weights
    if hasattr(found, "trace"):
        return found.trace.value, found.squared_frobenius_norm.value
    return found.values.numpy(), found.vectors.numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [hessian_matvec, ggn_matvec])
def test_curvature_products_know_their_space(make, dtype):
    operator = make(classification(), dtype=dtype)
    assert isinstance(operator, Operator)
    assert (operator.dim, operator.dtype, operator.device) == (NUM_PARAMS, dtype, CPU)
    assert operator(torch.ones(NUM_PARAMS)).dtype == dtype


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solvers_read_an_operators_space(solve, dtype):
    operator = hessian_matvec(classification(), dtype=dtype)
    described = {"dim": NUM_PARAMS, "dtype": dtype, "device": "cpu"}
    alone = numbers(solve(operator))
    bare = numbers(solve(lambda vector: operator(vector), **described))
    both = numbers(solve(operator, **described))
    for value, *others in zip(alone, bare, both, strict=True):
        for other in others:
            np.testing.assert_array_equal(value, other)


def test_a_float64_operator_is_solved_in_float64():
    """Not in float32, in which a bare function is: only float64 gets this far."""
    operator = hessian_matvec(classification(), dtype=torch.float64)
    pairs = top_eigenpairs(operator, rtol=1e-10)
    assert pairs.vectors.dtype == torch.float64
    assert pairs.converged
    assert pairs.residuals.item() < 1e-9


@pytest.mark.parametrize("solve", SOLVERS)
def test_a_bare_function_needs_its_dimension(solve):
    with pytest.raises(SettingError, match=r"a bare function does not say how long .* give dim"):
        solve(lambda vector: vector)


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"dim": 84}, "dim 84: this operator has P = 83"),
        ({"dtype": torch.float32}, r"dtype torch.float32: this operator computes in torch.float64"),
        ({"device": "cuda"}, "device cuda: this operator computes on cpu"),
    ],
)
def test_a_description_that_contradicts_the_operator_is_refused(solve, described, message):
    with pytest.raises(SettingError, match=message):
        solve(hessian_matvec(classification()), **described)


def test_a_gpu_without_a_number_is_any_gpu():
    class OnGpu:
        dim, dtype, device = 3, torch.float32, torch.device("cuda:1")

        def __call__(self, vector):
            return vector

    def space(device):
        return space_of(OnGpu(), dim=None, dtype=None, device=device)

    assert space("cuda").device == space("cuda:1").device == torch.device("cuda:1")
    with pytest.raises(SettingError, match="device cuda:0"):
        space("cuda:0")


def test_a_bare_function_is_on_the_cpu_in_float32_unless_described():
    assert space_of(torch.neg, dim=5, dtype=None, device=None) == (5, torch.float32, CPU)
