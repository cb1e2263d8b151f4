import math

import pytest
import torch

from noisescale.problems.problem import Examples, Problem
from noisescale.problems.sampling import Batches, select


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_an_epoch_uses_every_example_once_in_ceil_n_over_b_batches(batch_size):
    batches = Batches(10, seed=0)
    epoch = []
    while not epoch or batches.remaining:
        epoch.append(batches.take(batch_size))
    assert len(epoch) == math.ceil(10 / batch_size)
    assert sorted(torch.cat(epoch).tolist()) == list(range(10))
    assert len(epoch[-1]) == 10 - batch_size * (len(epoch) - 1)  # the ragged rest is used


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    batches, other = Batches(100, seed=0), Batches(100, seed=1)
    first, second = batches.take(100), batches.take(100)
    assert not torch.equal(first, second)
    assert not torch.equal(first, other.take(100))
    assert torch.equal(first, Batches(100, seed=0).take(100))


def test_the_batch_size_may_change_between_any_two_steps():
    batches = Batches(10, seed=0)
    taken = torch.cat([batches.take(size) for size in (1, 4, 2, 100)])
    assert sorted(taken.tolist()) == list(range(10))
    assert batches.epoch == 0
    batches.take(3)
    assert (batches.epoch, batches.remaining) == (1, 7)


def test_a_restored_order_goes_on_where_it_was():
    batches = Batches(10, seed=3)
    for _ in range(7):
        batches.take(4)  # into the third epoch, mid-way
    restored = Batches(10, seed=99)
    restored.load_state_dict(batches.state_dict())
    for _ in range(9):
        assert torch.equal(batches.take(3), restored.take(3))


def test_no_global_random_state_is_used():
    before = torch.get_rng_state()
    Batches(10, seed=0).take(5)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_random_subset_is_not_what_a_run_of_the_same_seed_trains_on_first():
    """Else the first epoch is measured on what it was trained on, and |G|² comes out too low."""
    values = torch.zeros(1000, 1)
    problem = Problem(
        model=torch.nn.Linear(1, 1),
        loss=torch.nn.MSELoss(reduction="none"),
        train=Examples(values, values),
    )
    shares = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        chosen = select(problem, num_examples=200, generator=generator).indices
        assert len(chosen.unique()) == 200
        trained = Batches(1000, seed=seed).take(200)
        shares.append(torch.isin(chosen, trained).double().mean().item())
    # hypergeometric: mean .2, standard deviation .025
    assert abs(sum(shares) / 40 - 0.2) < 4 * 0.025 / 40**0.5
    again = select(problem, num_examples=200, generator=torch.Generator().manual_seed(39))
    assert torch.equal(again.indices, chosen)
