"""Whether seeds of a problem of one's own differ in their start, however it is drawn."""

import pytest
import torch
from numpy.random import mtrand

from noisescale.errors import SettingError
from noisescale.problems.config import ProblemConfig
from noisescale.problems.factory import (
    build_own_problem,
    factory_config,
    load_problem,
    object_config,
    seeding_notes,
    seeding_of,
)
from noisescale.problems.problem import Examples, Problem
from tests.helpers.seeding import SOURCE


@pytest.fixture
def config_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seeds.py").write_text(SOURCE)
    return lambda name: factory_config(f"seeds.py:{name}")


def weights(config, seed):
    return build_own_problem(config, seed=seed).model.weight.detach().clone()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("drawn", "drawn"),
        ("takes_seed", "drawn"),
        ("keyword", "drawn"),
        ("made", "drawn"),
        ("short", "drawn"),
        ("anything", "drawn"),
        ("seeds_itself", "reseeded"),
        ("seeds_numpy", "reseeded"),
        ("own_generator", "fixed"),
    ],
)
def test_seeds_have_starts_of_their_own_where_that_can_be(config_of, name, expected):
    config = config_of(name)
    assert seeding_of(config) == expected
    starts = [weights(config, seed) for seed in range(3)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert torch.equal(starts[one], starts[other]) == (expected == "fixed")
    for seed, start in enumerate(starts):  # and the same ones again
        torch.testing.assert_close(weights(config, seed), start, rtol=0, atol=0)


def test_the_first_seed_is_the_factorys_own(config_of):
    torch.manual_seed(7)
    own = torch.nn.Linear(3, 1).weight.detach()
    torch.testing.assert_close(weights(config_of("seeds_itself"), 0), own, rtol=0, atol=0)


def test_a_seed_is_passed_where_it_is_taken(config_of):
    assert weights(config_of("takes_seed"), 5).eq(5).all()
    assert weights(config_of("keyword"), 3).eq(3).all()
    assert load_problem("seeds.py:takes_seed").model.weight.eq(0).all()


def test_what_seeds_share_is_said_once_there_are_several(config_of):
    assert seeding_notes(config_of("drawn"), num_seeds=3) == ()
    assert seeding_notes(config_of("own_generator"), num_seeds=1) == ()
    assert seeding_notes(ProblemConfig(), num_seeds=3) == ()
    (note,) = seeding_notes(config_of("seeds_itself"), num_seeds=2)
    assert note.startswith("seeds.py:seeds_itself seeds torch itself")
    (note,) = seeding_notes(config_of("own_generator"), num_seeds=2)
    assert "seeds differ in the order of the examples alone" in note


def test_building_touches_no_random_state_and_no_seeder(config_of, capsys):
    torch.manual_seed(11)
    before = torch.get_rng_state(), mtrand.get_state()[1].copy()
    seeder = torch.manual_seed
    build_own_problem(config_of("seeds_itself"), seed=4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (mtrand.get_state()[1] == before[1]).all()
    assert torch.manual_seed is seeder
    captured = capsys.readouterr()
    assert captured.out == ""  # which belongs to the result
    assert "made" in captured.err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "gives None: return noisescale.Problem"),
        ("Model", "gives a Model: return noisescale.Problem"),
        ("two", "takes first, second, which nobody gives it: give them a default"),
    ],
)
def test_what_makes_no_problem_is_refused(config_of, name, message):
    config_of("drawn")
    with pytest.raises(SettingError, match=message):
        load_problem(f"seeds.py:{name}")


def test_an_object_is_known_by_its_numbers_and_names(config_of):
    problem = load_problem("seeds.py:drawn")
    config = object_config(problem)
    assert config == object_config(load_problem("seeds.py:drawn"))
    assert (config.model, len(config.digest)) == ("Linear", 16)
    with torch.no_grad():
        problem.model.bias.add_(1e-3)
    assert object_config(problem) != config
    inputs, targets = problem.train
    changed = load_problem("seeds.py:drawn")
    object.__setattr__(changed, "train", Examples(inputs, targets + 1e-3))
    assert object_config(changed) != config


DRAWS_DATA = """
from __future__ import annotations

import pickle
import random
from dataclasses import dataclass

import numpy
import torch
from noisescale import Examples, Problem

@dataclass
class Settings:  # whose annotations are looked up in its module
    width: int = 3

def make():
    assert pickle.loads(pickle.dumps(Settings())) == Settings()
    draws = [numpy.random.randn(8, 3), [[random.random()] for _ in range(8)]]
    inputs = torch.from_numpy(numpy.concatenate(draws, 1)).float()
    loss = lambda outputs, targets: (outputs[:, 0] - targets) ** 2
    return Problem(model=torch.nn.Linear(4, 1), loss=loss, train=Examples(inputs, inputs.sum(1)))
"""


def test_data_are_the_same_ones_however_they_are_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(DRAWS_DATA)
    config = factory_config("own.py:make")
    state = mtrand.get_state()[1].copy()
    first = build_own_problem(config).train.inputs
    assert (mtrand.get_state()[1] == state).all()
    mtrand.rand(5)  # as another process stands elsewhere
    for seed in (0, 1, 2**40):
        assert torch.equal(build_own_problem(config, seed=seed).train.inputs, first)
    assert torch.equal(load_problem("own.py:make").train.inputs, first)


@pytest.mark.parametrize("change", ["activation", "frozen"])
def test_other_layers_on_the_same_parameters_are_another_problem(change):
    layers = [torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)]
    inputs = torch.ones(5, 3)
    problem = Problem(
        model=torch.nn.Sequential(*layers),
        loss=torch.nn.CrossEntropyLoss(reduction="none"),
        train=Examples(inputs, torch.zeros(5, dtype=torch.long)),
    )
    before = object_config(problem)
    assert object_config(problem) == before
    if change == "frozen":
        layers[0].requires_grad_(False)
    else:
        problem.model[1] = torch.nn.Tanh()
    assert object_config(problem) != before


def test_lazy_parameters_are_refused_in_one_sentence():
    inputs = torch.ones(5, 3)
    problem = Problem(
        model=torch.nn.LazyLinear(2),
        loss=torch.nn.CrossEntropyLoss(reduction="none"),
        train=Examples(inputs, torch.zeros(5, dtype=torch.long)),
    )
    with pytest.raises(SettingError, match="has lazy parameters: run it on one batch first"):
        object_config(problem)
