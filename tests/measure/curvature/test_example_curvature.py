"""The Gauss–Newton matrices of single examples against dense ones, formed one after the other."""

import pytest
import torch
from torch import nn

from noisescale.errors import MeasurementError, NotMeasurable
from noisescale.measure.curvature.example_curvature import ExampleCurvature
from noisescale.measure.curvature.products import ggn_matvec
from noisescale.measure.objective import Objective
from noisescale.problems.models import cross_entropy, squared_error
from noisescale.problems.problem import Examples, Problem
from tests.helpers.models import LanguageModel
from tests.helpers.problems import classification, example_curvatures, small_network


@pytest.fixture(params=["small network", "squared error", "convolution"])
def problem(request):
    if request.param == "small network":
        return small_network()
    if request.param == "squared error":
        return Problem(**{**vars(classification(num_examples=7)), "loss": squared_error})
    inputs = torch.randn(5, 1, 6, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(32, 3)).double()
    return Problem(
        model=model, loss=cross_entropy, train=Examples(inputs, torch.tensor([0, 1, 2, 1, 0]))
    )


@pytest.mark.parametrize("chunk_size", [None, 3])
def test_products_and_blocks_are_those_of_the_dense_matrices(problem, chunk_size):
    dense = example_curvatures(problem)
    found = ExampleCurvature(Objective(problem, chunk_size=chunk_size))
    vector = torch.randn(dense.shape[1], dtype=torch.float64)
    mean = dense.mean(0)
    torch.testing.assert_close(found.matvec(vector), mean @ vector)
    torch.testing.assert_close(found.matvec(vector), ggn_matvec(problem)(vector))
    torch.testing.assert_close(found.squares_matvec(vector), (dense @ dense).mean(0) @ vector)
    torch.testing.assert_close(
        found.forms(vector), torch.einsum("p,npq,q->n", vector, dense, vector)
    )
    mixed = torch.einsum("p,npq,q->n", vector, dense, mean @ vector)
    squares = torch.einsum("p,npq,q->n", vector, dense @ dense, vector)
    torch.testing.assert_close(found.deviation_forms(vector), squares - 2 * mixed)
    torch.testing.assert_close(found.traces(), torch.einsum("npp->n", dense))
    torch.testing.assert_close(found.largest_each(), torch.linalg.eigvalsh(dense)[:, -1])


def test_a_model_with_too_many_outputs_is_refused():
    model = nn.Linear(3, 200).double()
    examples = Examples(torch.randn(4, 3, dtype=torch.float64), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(MeasurementError, match="200 numbers for one example"):
        ExampleCurvature(Objective(Problem(model=model, loss=cross_entropy, train=examples)))


def test_outputs_without_a_row_per_example_are_refused():
    """As (T, B, C), of a recurrent network."""

    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, inputs):
            return torch.stack([self.layer(inputs), self.layer(2 * inputs)])

    problem = Problem(
        model=TimeFirst(),
        loss=lambda outputs, targets: (outputs.mean(0) - targets).square().sum(1),
        train=Examples(torch.randn(4, 3), torch.zeros(4, 2)),
    )
    with pytest.raises(NotMeasurable, match=r"gives \(2, 4, 2\) for 4 examples"):
        ExampleCurvature(Objective(problem))


def test_outputs_of_several_dimensions_are_flattened():
    model = LanguageModel(tied=False).double()
    tokens = torch.randint(1, 11, (3, 5))
    problem = Problem(
        model=model,
        loss=lambda outputs, targets: (
            nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
            .view_as(targets)
            .mean(1)
        ),
        train=Examples(tokens, tokens.roll(-1, 1)),
    )
    found = ExampleCurvature(Objective(problem))
    vector = torch.randn(found.objective.dim, dtype=torch.float64)
    torch.testing.assert_close(found.matvec(vector), ggn_matvec(problem)(vector))
    assert found.kernel.shape == (3, 55, 55)
