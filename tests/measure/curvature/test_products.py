"""Hessian and Gauss–Newton products against dense matrices in closed form and by other means."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call, hessian, jacrev

import noisescale.measure.curvature.products as curvature
from noisescale.errors import MeasurementError
from noisescale.measure.curvature.products import ggn_matvec, hessian_matvec
from noisescale.measure.objective import flatten
from noisescale.problems.models import cnn, cross_entropy, squared_error
from noisescale.problems.problem import Examples, Problem
from tests.helpers.problems import classification, regression


def dense(matvec, dim, dtype=torch.float64):
    return torch.stack([matvec(unit) for unit in torch.eye(dim, dtype=dtype)])


def num_params(problem):
    return sum(param.numel() for param in problem.model.parameters())


@pytest.mark.parametrize("matvec", [hessian_matvec, ggn_matvec])
@pytest.mark.parametrize("chunk_size", [1, 7, 30])
def test_linear_regression_has_the_hessian_of_its_inputs(matvec, chunk_size):
    problem = regression().problem
    inputs = problem.train.inputs
    found = dense(matvec(problem, chunk_size=chunk_size), 4)
    torch.testing.assert_close(found, inputs.T @ inputs / len(inputs), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("matvec", [hessian_matvec, ggn_matvec])
def test_softmax_regression_has_its_closed_form(matvec):
    problem = classification(nn.Linear(6, 3, bias=False))
    inputs, probabilities = (
        problem.train.inputs,
        problem.model(problem.train.inputs).softmax(1).detach(),
    )
    blocks = torch.diag_embed(probabilities) - torch.einsum(
        "ni,nj->nij", probabilities, probabilities
    )
    expected = torch.einsum("nij,nk,nl->ikjl", blocks, inputs, inputs).reshape(18, 18) / len(inputs)
    torch.testing.assert_close(dense(matvec(problem), 18), expected, rtol=1e-10, atol=1e-14)


def test_logistic_regression_has_its_closed_form():
    inputs = torch.randn(40, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = (inputs[:, 0] > 0).double()

    def logistic(outputs, targets):
        return nn.functional.binary_cross_entropy_with_logits(
            outputs[:, 0], targets, reduction="none"
        )

    model = nn.Linear(5, 1, bias=False).double()
    problem = Problem(model=model, loss=logistic, train=Examples(inputs, targets))
    p = model(inputs).sigmoid().detach()[:, 0]
    expected = inputs.T @ ((p * (1 - p)).unsqueeze(1) * inputs) / 40
    torch.testing.assert_close(dense(hessian_matvec(problem, chunk_size=9), 5), expected)


@pytest.mark.parametrize("loss", [cross_entropy, squared_error])
@pytest.mark.parametrize("chunk_size", [8, None])  # 50 examples: the last chunk has two
def test_a_small_network_has_the_hessian_of_torch_func(loss, chunk_size):
    base = classification()
    problem = Problem(model=base.model, loss=loss, train=base.train)
    params = {name: param.detach() for name, param in base.model.named_parameters()}
    shapes = {name: param.shape for name, param in params.items()}

    def mean_loss(vector):
        parts = vector.split([shape.numel() for shape in shapes.values()])
        named = {
            name: part.view(shape)
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }
        return loss(
            functional_call(base.model, named, (base.train.inputs,)), base.train.targets
        ).mean()

    expected = hessian(mean_loss)(flatten(list(params.values())))
    found = dense(hessian_matvec(problem, chunk_size=chunk_size), num_params(problem))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)


def test_the_gauss_newton_matrix_is_jacobians_around_the_loss_curvature():
    problem = classification()
    params = {name: param.detach() for name, param in problem.model.named_parameters()}
    jacobians = jacrev(lambda p: functional_call(problem.model, p, (problem.train.inputs,)))(params)
    jacobian = torch.cat([part.flatten(2) for part in jacobians.values()], dim=2)  # (N, C, P)
    p = problem.model(problem.train.inputs).softmax(1).detach()
    curved = torch.diag_embed(p) - torch.einsum("ni,nj->nij", p, p)
    expected = torch.einsum("nip,nij,njq->pq", jacobian, curved, jacobian) / 50
    found = dense(ggn_matvec(problem, chunk_size=8), num_params(problem))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-12)
    assert torch.linalg.eigvalsh(found).min() > -1e-12


@pytest.mark.parametrize("kept_bytes", [0, 1, 2**29])
def test_what_is_kept_between_products_changes_nothing(kept_bytes, monkeypatch):
    problem = classification()
    expected = dense(hessian_matvec(problem), num_params(problem))
    monkeypatch.setattr(curvature, "KEPT_BYTES", kept_bytes)
    matvec = hessian_matvec(problem, chunk_size=8)
    torch.testing.assert_close(dense(matvec, num_params(problem)), expected)
    assert len(matvec._kept) == (7 if kept_bytes == 2**29 else 0)


def test_products_are_those_of_the_parameters_given_then():
    problem = classification()
    matvec = hessian_matvec(problem)
    vector = torch.ones(num_params(problem), dtype=torch.float64)
    before = matvec(vector)
    with torch.no_grad():
        for param in problem.model.parameters():
            param.mul_(2)
    assert torch.equal(matvec(vector), before)
    assert not torch.allclose(hessian_matvec(problem)(vector), before)


@pytest.mark.peers
@pytest.mark.parametrize("ours", [hessian_matvec, ggn_matvec])
@pytest.mark.parametrize("kind", ["mlp", "cnn"])
def test_agrees_with_curvlinops(ours, kind):
    curvlinops = pytest.importorskip("curvlinops")
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(20, 1, 8, 8, generator=generator, dtype=torch.float64)
    targets = torch.randint(4, (20,), generator=generator)
    layers = [nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 4)]
    model = nn.Sequential(*layers) if kind == "mlp" else cnn((1, 8, 8), 4, width=3, norm="batch")
    model = model.double().eval()
    problem = Problem(model=model, loss=cross_entropy, train=Examples(inputs, targets))
    theirs = (
        curvlinops.HessianLinearOperator if ours is hessian_matvec else curvlinops.GGNLinearOperator
    )
    params = list(model.parameters())
    data = [(inputs[:12], targets[:12]), (inputs[12:], targets[12:])]
    operator = theirs(model, nn.CrossEntropyLoss(), params, data, check_deterministic=False)
    vector = torch.randn(num_params(problem), generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        ours(problem, chunk_size=7)(vector), operator @ vector, rtol=1e-8, atol=1e-10
    )


def test_float32_products_agree_with_float64():
    problem = classification()
    vector = torch.randn(num_params(problem), generator=torch.Generator().manual_seed(0))
    exact = hessian_matvec(problem)(vector.double())
    single = hessian_matvec(problem, dtype=torch.float32)(vector)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-6)


def test_attention_has_a_hessian():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
            self.head = nn.Linear(6, 3)

        def forward(self, inputs):  # (B, 6) as a sequence of one-hot-scaled tokens (B, 6, 6)
            tokens = torch.diag_embed(inputs)
            return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))

    problem = classification(Attention())
    matrix = dense(hessian_matvec(problem), num_params(problem))
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-9, atol=1e-12)
    assert matrix.abs().max() > 1e-3


class _OnceSquare(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


class OnceDifferentiable(nn.Linear):
    def forward(self, inputs):
        return _OnceSquare.apply(super().forward(inputs))


def test_losses_without_a_second_derivative_are_named():
    problem = classification(OnceDifferentiable(6, 3))
    with pytest.raises(
        MeasurementError,
        match=r"^OnceDifferentiable with the loss cross_entropy.*_OnceSquareBackward",
    ):
        hessian_matvec(problem)(torch.ones(21))

    def margin(outputs, targets):
        return outputs[:, 0]

    linear = Problem(model=nn.Linear(6, 3).double(), loss=margin, train=problem.train)
    for matvec in (hessian_matvec, ggn_matvec):
        with pytest.raises(
            MeasurementError, match="Linear with the loss margin has no second derivative"
        ):
            matvec(linear)(torch.ones(21, dtype=torch.float64))


def test_a_product_that_is_not_finite_is_an_error():
    problem = classification(nn.Linear(6, 3))
    with pytest.raises(MeasurementError, match="not finite"):
        hessian_matvec(problem)(torch.full((21,), np.inf, dtype=torch.float64))


def test_out_of_memory_while_graphs_are_kept_gives_them_back(monkeypatch):
    class Filling(nn.Linear):
        """A layer for which the memory ends at its third chunk, once."""

        calls = 0

        def forward(self, inputs):
            Filling.calls += len(inputs) == 16
            if Filling.calls == 4 and len(inputs) == 16:  # the first whole chunk is only compared
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(inputs)

    problem = classification(Filling(6, 3))
    vector = torch.ones(21, dtype=torch.float64)
    matvec = hessian_matvec(problem, chunk_size=16)
    found = matvec(vector)
    assert matvec.objective.chunk_size == 8
    plain = classification(nn.Linear(6, 3))
    expected = hessian_matvec(plain, dict(problem.model.named_parameters()))(vector)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(matvec(vector), expected)


def test_forms_of_chunks_are_those_of_their_own_matrices(monkeypatch):
    """30 examples of a regression in chunks of 8; H of each is the mean of its x xᵀ."""
    problem = regression().problem
    inputs = problem.train.inputs
    vectors = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    wanted = torch.tensor([[True, False, True, True], [False] * 4, [True] * 4])
    for kept_bytes in (0, 2**20):
        monkeypatch.setattr(curvature, "KEPT_BYTES", kept_bytes)
        product = hessian_matvec(problem, chunk_size=8)
        assert product.num_kept == (0 if kept_bytes == 0 else 30)
        found = product.forms(vectors, wanted)
        assert torch.equal(~found.isnan(), wanted)
        for row, column in wanted.nonzero().tolist():
            part = inputs[8 * column : 8 * column + 8]
            expected = ((part @ vectors[row]) ** 2).mean()
            torch.testing.assert_close(found[row, column], expected)
    with pytest.raises(MeasurementError, match="the memory ran out between products"):
        hessian_matvec(problem, chunk_size=7).forms(vectors, wanted)
