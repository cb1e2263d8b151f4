"""Cross-entropy of many classes with its second derivative in closed form, against torch's own."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import cross_entropy as imported_by_name

from noisescale.errors import MeasurementError
from noisescale.measure.curvature.products import ggn_matvec, hessian_matvec
from noisescale.measure.objective import Objective
from noisescale.measure.objective.passes import differentiable_twice
from noisescale.measure.objective.substitutes import cross_entropy as module
from noisescale.measure.objective.substitutes.cross_entropy import LARGE_VOCABULARY, cross_entropy
from noisescale.problems.problem import Examples, Problem
from tests.helpers.problems import seeded

CLASSES = LARGE_VOCABULARY


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def logits_and_targets(*shape):
    """Logits (B, V, ...), some far from zero, and classes, one in four of them ignored."""
    logits = 5 * torch.randn(shape[0], CLASSES, *shape[1:], dtype=torch.float64)
    targets = torch.randint(CLASSES, shape, generator=seeded(1))
    targets[torch.rand(shape, generator=seeded(2)) < 0.25] = -100
    targets.view(-1)[0] = 3  # one that counts
    return logits.requires_grad_(), targets


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 2, 3)])
def test_losses_and_derivatives_to_the_third_are_torchs(shape, reduction):
    logits, targets = logits_and_targets(*shape)
    results = []
    for function in (functional.cross_entropy, cross_entropy):
        losses = function(logits, targets, reduction=reduction)
        weights = torch.linspace(-1, 2, losses.numel(), dtype=torch.float64).view_as(losses)
        weights.requires_grad_()
        (gradient,) = torch.autograd.grad(losses, logits, weights, create_graph=True)
        along = torch.randn(gradient.shape, generator=seeded(3), dtype=torch.float64)
        by_logits, by_weights = torch.autograd.grad(
            gradient, [logits, weights], along, create_graph=True
        )
        again = torch.randn(gradient.shape, generator=seeded(4), dtype=torch.float64)
        (third,) = torch.autograd.grad(by_logits, logits, again)
        results.append([losses, gradient, by_logits, by_weights, third])
    for theirs, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_the_product_is_that_of_the_matrix_written_down():
    """Of one example: diag(p) − p pᵀ."""
    logits = torch.randn(1, CLASSES, dtype=torch.float64, requires_grad=True)
    losses = cross_entropy(logits, torch.tensor([7]), reduction="sum")
    (gradient,) = torch.autograd.grad(losses, logits, create_graph=True)
    shares = logits.detach().softmax(1)[0]
    vector = torch.randn(CLASSES, dtype=torch.float64)
    (found,) = torch.autograd.grad(gradient, logits, vector[None])
    matrix = torch.diag(shares) - torch.outer(shares, shares)
    torch.testing.assert_close(found[0], matrix @ vector, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    "given",
    [
        {"weight": torch.ones(CLASSES)},
        {"label_smoothing": 0.1},
        {"target": torch.ones(4, CLASSES) / CLASSES},
        {"target": torch.tensor([0, 1, 2, CLASSES])},
        {"target": torch.tensor([0, 1, 2, -1])},
        {"input": torch.randn(4, CLASSES - 1)},
        {"input": torch.randn(CLASSES), "target": torch.tensor(3)},
        {"input": torch.randn(4, CLASSES).bfloat16()},
        {"reduce": False},
    ],
    ids=lambda given: ", ".join(given),
)
def test_calls_that_it_does_not_cover_are_left_to_torch(given):
    arguments = {"input": torch.randn(4, CLASSES), "target": torch.arange(4)} | given
    assert cross_entropy(**arguments) is None


class Tokens(nn.Module):
    """Tokens (B, T) -> logits (B, T, V)."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(CLASSES, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, tokens):
        return self.head(torch.tanh(self.embedding(tokens)))


def by_function(outputs, targets):
    return imported_by_name(outputs.mT, targets, reduction="none").mean(1)


def by_module(outputs, targets):
    each = nn.CrossEntropyLoss(reduction="none")(outputs.flatten(0, 1), targets.flatten())
    return each.view_as(targets).mean(1)


def tokens_problem(loss):
    tokens = torch.randint(CLASSES, (6, 4), generator=seeded(5))
    targets = tokens.roll(1, 1).clone()
    targets[0, :2] = -100
    return Problem(model=Tokens().double(), loss=loss, train=Examples(tokens, targets))


@pytest.mark.parametrize("loss", [by_function, by_module])
@pytest.mark.parametrize("matvec", [hessian_matvec, ggn_matvec])
def test_products_of_a_language_model_are_those_without_it(matvec, loss, monkeypatch):
    problem = tokens_problem(loss)
    calls = []
    apply = module._Losses.apply
    monkeypatch.setattr(module._Losses, "apply", lambda *given: calls.append(1) or apply(*given))
    found = matvec(problem, chunk_size=4)
    vector = torch.randn(found.dim, dtype=torch.float64)
    product = found(vector)
    assert calls, "the loss went past it"
    monkeypatch.setattr(module, "LARGE_VOCABULARY", CLASSES + 1)
    calls.clear()
    expected = matvec(problem, chunk_size=4)(vector)
    assert not calls
    torch.testing.assert_close(product, expected, rtol=1e-10, atol=1e-13)


def test_the_graph_of_a_product_holds_less(monkeypatch):
    with_it = Objective(tokens_problem(by_module)).bytes_per_example
    monkeypatch.setattr(module, "LARGE_VOCABULARY", CLASSES + 1)
    assert with_it < 0.8 * Objective(tokens_problem(by_module)).bytes_per_example


def test_a_class_that_there_is_not_is_named_as_before():
    problem = tokens_problem(by_module)
    problem.train.targets[2, 1] = CLASSES
    with pytest.raises(MeasurementError, match=f"{CLASSES}"):
        hessian_matvec(problem)(torch.ones(hessian_matvec(problem).dim, dtype=torch.float64))


def test_within_a_transformation_of_torch_func_it_is_torchs_own():
    logits, targets = logits_and_targets(3, 2)
    targets = targets.clamp(min=0)

    def losses(of_one, target):
        return functional.cross_entropy(of_one[None], target[None])

    with differentiable_twice():
        found = torch.func.vmap(torch.func.grad(losses))(logits.detach(), targets)
    (expected,) = torch.autograd.grad(
        functional.cross_entropy(logits, targets, reduction="none").sum(), logits
    )
    torch.testing.assert_close(2 * found, expected)
