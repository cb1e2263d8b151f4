"""A study's folder: how its runs order their examples, now and in folders of earlier releases."""

import json
from itertools import pairwise

import pytest

from noisescale.studies.jobs.folder import INDEPENDENT, SHARED, claim, ordered
from noisescale.training.config import TrainConfig

IDENTITY = {"problem": {"dataset": "digits"}, "split": "train"}


def test_a_new_folder_draws_orders_from_seed_and_batch_size(tmp_path):
    assert claim(tmp_path / "study", IDENTITY, settings="study.json") == INDEPENDENT
    stored = json.loads((tmp_path / "study" / "study.json").read_text())
    assert stored == IDENTITY | {"orders": "seed and batch size"}
    assert claim(tmp_path / "study", IDENTITY, settings="study.json") == INDEPENDENT


def test_a_folder_of_an_earlier_release_goes_on_as_it_began(tmp_path):
    """Runs made anew beside its own would neither be found nor be comparable."""
    (tmp_path / "study.json").write_text(json.dumps(IDENTITY))
    assert claim(tmp_path, IDENTITY, settings="study.json") == SHARED
    assert json.loads((tmp_path / "study.json").read_text()) == IDENTITY
    training = TrainConfig(seed=3)
    assert ordered(training, SHARED) == training


@pytest.mark.parametrize("batch_size", [1, 32, "full"])
def test_orders_differ_by_seed_and_batch_size_alone(batch_size):
    def order(**changes):
        training = TrainConfig(**{"batch_size": batch_size, "seed": 0, **changes})
        made = ordered(training, INDEPENDENT)
        assert made.seed == training.seed  # of the initial parameters
        return made.order_seed

    assert order() == order(learning_rate=3.0)
    orders = [order(batch_size=size, seed=seed) for size in (1, 2, 32, "full") for seed in range(3)]
    assert len(set(orders)) == len(orders)
    assert all(a != b + 1 for a, b in pairwise(orders))
