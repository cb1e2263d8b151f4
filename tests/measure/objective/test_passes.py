"""Passes in operations that can be differentiated: checkpointed blocks and compiled functions."""

import functools
import sys

import pytest
import torch
from torch import nn
from torch.utils import checkpoint as checkpointing
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from noisescale.measure.curvature.products import ggn_matvec, hessian_matvec
from noisescale.measure.objective import Objective, as_measured
from noisescale.problems.problem import Problem
from tests.helpers.dense import matrix_of
from tests.helpers.problems import classification


class Blocks(nn.Module):
    """A network whose middle is run by a function of its own."""

    def __init__(self, run):
        super().__init__()
        self.run = run
        self.first, self.last = nn.Linear(6, 5), nn.Linear(5, 3)
        self.middle = nn.Sequential(nn.Linear(5, 5), nn.Tanh())

    def forward(self, x):
        return self.last(self.run(self.middle, self.first(x)))


def plain(function, *arguments):
    return function(*arguments)


CHECKPOINTED = {
    "non-reentrant": functools.partial(checkpoint, use_reentrant=False),
    "reentrant": functools.partial(checkpoint, use_reentrant=True),
    "sequential": lambda block, x: checkpoint_sequential(block, 2, x, use_reentrant=False),
}


def with_run(run, problem):
    """The problem with its model's middle run by `run`, the parameters shared."""
    model = Blocks(run).double()
    model.load_state_dict(problem.model.state_dict())
    return Problem(model=model, loss=problem.loss, train=problem.train)


@pytest.mark.parametrize("run", CHECKPOINTED.values(), ids=CHECKPOINTED)
@pytest.mark.parametrize("matvec", [hessian_matvec, ggn_matvec])
def test_a_checkpointed_block_has_the_curvature_of_a_plain_one_at_any_parameters(run, matvec):
    problem = classification(Blocks(plain))
    elsewhere = {name: param.detach() + 0.5 for name, param in problem.model.named_parameters()}
    for params in (None, elsewhere):
        expected = matrix_of(matvec(problem, params))
        found = matrix_of(matvec(with_run(run, problem), params))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_checkpoints_are_put_back_afterwards_also_from_within():
    before = checkpointing.CheckpointFunction
    with as_measured(), as_measured():
        assert checkpointing.CheckpointFunction is not before
    assert checkpointing.CheckpointFunction is before
    with pytest.raises(ZeroDivisionError), as_measured():
        _ = 1 / 0
    assert checkpointing.CheckpointFunction is before


def test_compiled_functions_run_as_they_were_written():
    problem = classification(Blocks(plain))
    squash = torch.compile(torch.tanh, backend="aot_eager")

    def run(block, x):
        return squash(block[0](x))

    loss = torch.compile(problem.loss, backend="aot_eager")
    compiled = with_run(run, problem)
    compiled = Problem(model=compiled.model, loss=loss, train=problem.train)
    expected = Objective(problem).value_and_gradient()
    found = Objective(compiled).value_and_gradient()
    assert found[0] == pytest.approx(expected[0], rel=1e-12)
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        matrix_of(hessian_matvec(compiled)),
        matrix_of(hessian_matvec(problem)),
        rtol=1e-12,
        atol=1e-14,
    )


def test_contexts_cost_the_process_no_references():
    """Torch 2.6 takes three to None each time, for want of which Python 3.11 would end."""
    torch.func.vmap(torch.sin)(torch.zeros(2))  # which imports the compiler
    with as_measured():
        pass
    before = sys.getrefcount(None)
    for _ in range(100):
        with as_measured():
            pass
    assert sys.getrefcount(None) > before - 100
