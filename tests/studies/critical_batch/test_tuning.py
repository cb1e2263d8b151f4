"""The search for the best learning rates: widened at the ends, bounded, cut short."""

import math

import pytest

from noisescale.studies.critical_batch.tuning import (
    MOST_UNREACHED,
    SLACK,
    Trial,
    best_indices,
    tune,
    tune_first,
)


def search(steps_at, centre, budget=1000, *, factor=2.0, tune=tune):
    """A search of runs that take steps_at(index): its trials in rounds, and what was tried."""
    tried, rounds = {}, []
    tuning = tune(centre, budget, factor=factor)
    trials = next(tuning)
    while True:
        rounds.append(trials)
        answers = []
        for index, max_steps in trials:
            steps = tuple(one if one <= max_steps else math.inf for one in steps_at(index))
            tried[index] = steps
            answers.append(steps)
        try:
            trials = tuning.send(answers)
        except StopIteration:
            return rounds, tried


def bowl(best):
    return lambda index: (100.0 * 1.5 ** abs(index - best),)


@pytest.mark.parametrize("best", [-5, -1, 0, 1, 4])
def test_the_best_rate_ends_between_others(best):
    _, tried = search(bowl(best), 0)
    assert best_indices(tried) == [best]
    assert min(tried) < best < max(tried)
    assert len(tried) <= 3 + abs(best)


def test_every_goal_has_its_own():
    rounds, tried = search(
        lambda index: (100.0 * 1.5 ** abs(index + 2), 200.0 * 1.5 ** abs(index - 3)), 0
    )
    assert best_indices(tried) == [-2, 3]
    assert sorted(tried) == list(range(-3, 5))
    assert rounds[0] == [Trial(-1, 1000), Trial(0, 1000), Trial(1, 1000)]


def test_later_rates_get_twice_what_the_fastest_took():
    rounds, _ = search(bowl(3), 0)
    assert rounds[1] == [Trial(2, math.ceil(SLACK * 100 * 1.5**2))]
    assert rounds[2] == [Trial(3, math.ceil(SLACK * 100 * 1.5))]


def test_divergence_above_brackets():
    _, tried = search(lambda index: (100.0 * 2.0**-index if index < 2 else math.inf,), 0)
    assert best_indices(tried) == [1]
    assert max(tried) == 2


def test_a_goal_that_no_rate_reaches_is_given_up():
    rounds, tried = search(lambda index: (50.0 * 1.5 ** abs(index), math.inf), 0)
    assert len(tried) == MOST_UNREACHED
    assert best_indices(tried) == [0, None]
    assert all(trial.max_steps == 1000 for trials in rounds for trial in trials)


def test_a_fine_grid_is_searched_as_widely():
    _, tried = search(lambda index: (math.inf,), 0, factor=math.sqrt(2))
    assert len(tried) >= 12
    _, tried = search(lambda index: (100.0 if index <= -5 else math.inf,), 0, factor=math.sqrt(2))
    assert best_indices(tried)[0] is not None


def test_steps_that_fall_without_end_are_not_followed_for_ever():
    _, tried = search(lambda index: (1000.0 * 0.99**index,), 0, budget=10**6)
    assert len(tried) < 40


def test_the_first_search_spends_no_more_than_it_needs_on_rates_that_never_arrive():
    """At 1 and above a run ends where it is told to: within a 16th of what the user allows."""

    def steps_at(index):
        return (100.0 * 1.5**-index if index < 1 else math.inf,)

    rounds, tried = search(steps_at, 1, 4000, tune=tune_first)
    assert best_indices(tried) == [0]
    assert max(trial.max_steps for trials in rounds for trial in trials) == 250


def test_the_first_search_comes_to_all_that_the_user_allows():
    rounds, tried = search(lambda index: (900.0 * 1.5 ** abs(index),), 0, 1000, tune=tune_first)
    first = [trials[0].max_steps for trials in rounds if len(trials) == 3]
    assert first == [63, 250, 1000]
    assert best_indices(tried) == [0]


def test_a_goal_out_of_reach_ends_the_first_search_too():
    rounds, tried = search(lambda index: (math.inf,), 0, 1000, tune=tune_first)
    assert len(tried) == MOST_UNREACHED
    assert sum(len(trials) for trials in rounds) == 3 * MOST_UNREACHED


def test_a_rate_that_one_goal_wants_gets_what_that_goal_takes():
    """The best rate of the first goal is far below: no run there goes on to the second."""
    rounds, tried = search(
        lambda index: (20.0 * 1.5 ** abs(index + 2), 500.0 * 1.5 ** abs(index)), 0, 10_000
    )
    assert rounds[1:] == [[Trial(-2, 60)], [Trial(-3, 40)]]
    assert best_indices(tried) == [-2, 0]
