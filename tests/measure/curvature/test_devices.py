"""Curvature on the CPU and, where there is one, on a GPU: that of the dense matrix."""

import pytest
import torch
from torch import nn

from noisescale.measure.curvature.eigenpairs import top_eigenpairs
from noisescale.measure.curvature.keskar import keskar_sharpness
from noisescale.measure.curvature.products import ggn_matvec, hessian_matvec
from noisescale.measure.curvature.spectrum import spectral_moments
from noisescale.measure.objective import Objective
from noisescale.measure.sharpness import SharpnessOptions, measure_sharpness
from tests.helpers.dense import dense_hessian
from tests.helpers.devices import EVERYWHERE, on
from tests.helpers.models import PROBLEMS
from tests.helpers.problems import classification


def mean_loss(problem):
    return lambda model: problem.loss(model(problem.train.inputs), problem.train.targets).mean()


@pytest.mark.parametrize("device", EVERYWHERE)
@pytest.mark.parametrize("name", ["mlp", "signals", "functional head"])
def test_hessian_products_are_those_of_the_dense_matrix(name, device):
    problem = PROBLEMS[name]()
    dense = dense_hessian(problem.model, mean_loss(problem))
    product = hessian_matvec(on(problem, device), chunk_size=4)
    vector = torch.randn(product.dim, dtype=torch.float64)
    for _ in range(2):  # recorded, then kept
        found = product(vector.to(product.device))
        assert found.device.type == device
        torch.testing.assert_close(found.cpu(), dense @ vector, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("device", EVERYWHERE)
def test_gauss_newton_products_of_a_linear_model_are_the_hessians(device):
    problem = on(classification(nn.Linear(6, 3)), device)
    hessian, ggn = hessian_matvec(problem), ggn_matvec(problem)
    vector = torch.randn(hessian.dim, dtype=torch.float64).to(hessian.device)
    torch.testing.assert_close(ggn(vector), hessian(vector), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("device", EVERYWHERE)
def test_eigenvalues_are_those_of_the_dense_matrix(device):
    problem = classification()
    values = torch.linalg.eigvalsh(dense_hessian(problem.model, mean_loss(problem)))
    product = hessian_matvec(on(problem, device))
    pairs = top_eigenpairs(product, k=2, rtol=1e-7)
    torch.testing.assert_close(
        pairs.values.cpu().double(), values.flip(0)[:2], rtol=1e-6, atol=1e-9
    )
    moments = spectral_moments(product, num_matvecs=product.dim)
    assert moments.trace.value == pytest.approx(float(values.sum()), rel=0.3)


@pytest.mark.parametrize("device", EVERYWHERE)
@pytest.mark.parametrize(
    "options",
    [{"top": 2, "bottom": 1}, {"batch_size": 8, "num_batches": 16}, {"critical": True}],
    ids=str,
)
def test_sharpness_does_not_depend_on_the_device(options, device):
    problem = classification()
    found, expected = (
        measure_sharpness(on(problem, place), options=SharpnessOptions(rtol=1e-7, **options))
        for place in (device, "cpu")
    )
    for mine, theirs in zip(found.eigenvalues, expected.eigenvalues, strict=True):
        assert mine.value.value == pytest.approx(theirs.value.value, rel=1e-5)
    if expected.batch_sharpness is not None:
        wanted = pytest.approx(expected.batch_sharpness.value, rel=1e-6)
        assert found.batch_sharpness.value == wanted
    if expected.critical is not None:
        assert found.critical.value.value == pytest.approx(expected.critical.value.value, rel=1e-4)


@pytest.mark.parametrize("device", EVERYWHERE)
def test_phi_does_not_depend_on_the_device(device):
    found, expected = (
        keskar_sharpness(
            Objective(on(classification(), place)), space="full", epsilon=1e-3, max_iterations=5
        )
        for place in (device, "cpu")
    )
    assert found.value == pytest.approx(expected.value, rel=1e-3)


@pytest.mark.gpu
def test_graphs_that_a_gpu_does_not_hold_are_recorded_anew():
    problem = on(classification(num_examples=4096), "cuda")
    vector = torch.randn(hessian_matvec(problem).dim, dtype=torch.float64, device="cuda")
    expected = hessian_matvec(problem)(vector)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**23) / total)
    try:
        found = hessian_matvec(problem, chunk_size=4096)(vector)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_memory_that_ends_after_a_product_adds_nothing_twice(monkeypatch):
    """What is told of a chunk takes memory too: where that fails the chunk counts once."""
    problem = classification()
    expected = hessian_matvec(problem)
    vector = torch.randn(expected.dim, dtype=torch.float64)
    product, calls = hessian_matvec(problem, chunk_size=25), []
    product.objective.check_any_company()
    double = torch.Tensor.double

    def failing(tensor):
        calls.append(tensor)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return double(tensor)

    monkeypatch.setattr(torch.Tensor, "double", failing)
    found = product.with_forms(vector)[0]
    monkeypatch.undo()
    assert product.objective.chunk_size == 12
    torch.testing.assert_close(found, expected(vector))
