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
from noisescale.problems.problem import Examples
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
