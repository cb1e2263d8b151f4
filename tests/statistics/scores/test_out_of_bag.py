import itertools

import numpy as np
import pytest

from noisescale.errors import SettingError
from noisescale.statistics.scores.out_of_bag import out_of_bag


def bags(num_models, num_examples, rng):
    drawn = rng.integers(num_examples, size=(num_models, num_examples))
    return np.array([np.bincount(sample, minlength=num_examples) for sample in drawn])


def test_scores_are_plain_loops_over_models_and_pairs():
    rng = np.random.default_rng(0)
    p, classes = rng.dirichlet(np.ones(3), size=(6, 12)), rng.integers(3, size=12)
    in_bag = bags(6, 12, rng)
    one, pairs, voted, right = [], [], [], []
    for i, label in enumerate(classes):
        y = np.eye(3)[label]
        out = [m for m in range(6) if in_bag[m, i] == 0]
        if len(out) < 2:
            continue
        one.append(np.mean([np.square(p[m, i] - y).sum() for m in out]))
        both = itertools.combinations(out, 2)
        pairs.append(np.mean([(p[a, i] - y) @ (p[b, i] - y) for a, b in both]))
        mean = np.mean([p[m, i] for m in out], axis=0)
        voted.append(np.square(mean - y).sum())
        right.append(mean.argmax() == label)
    result = out_of_bag(p, classes, in_bag)
    assert (result.num_models, result.num_examples) == (6, len(one))
    assert result.num_left_out == 12 - len(one) > 0
    assert float(result.single) == pytest.approx(np.mean(one))
    assert float(result.voted) == pytest.approx(np.mean(voted))
    assert float(result.accuracy) == pytest.approx(np.mean(right))
    of_ten = np.array(pairs) + (np.array(one) - np.array(pairs)) / 10
    assert float(result.ensemble(10)) == pytest.approx(of_ten.mean())
    assert result.ensemble(10).stderr == pytest.approx(of_ten.std(ddof=1) / np.sqrt(len(one)))
    assert float(result.ensemble(1)) == float(result.single)


def test_the_score_of_all_models_is_that_on_fresh_examples():
    # models whose predictions are their sample's mean: what is in the sample has pulled it
    rng = np.random.default_rng(1)
    gaps = []
    for _ in range(200):
        y = rng.normal(size=30)
        in_bag = bags(40, 30, rng)
        of_model = in_bag @ y / 30
        p = np.broadcast_to(of_model[:, None, None], (40, 30, 1))
        # on a fresh example: 1 of its own, and how far the ensemble's prediction is from 0
        truth = 1 + of_model.mean() ** 2
        gaps.append(float(out_of_bag(p, y[:, None], in_bag).ensemble(40)) - truth)
    assert abs(np.mean(gaps)) < 4 * np.std(gaps) / np.sqrt(200)


def test_what_does_not_fit_is_refused():
    p = np.zeros((3, 4, 2))
    with pytest.raises(SettingError, match=r"in_bag of shape \(4, 3\)"):
        out_of_bag(p, np.zeros(4, int), np.zeros((4, 3)))
    with pytest.raises(SettingError, match="0 examples that two models were not trained on"):
        out_of_bag(p, np.zeros(4, int), np.ones((3, 4)))
    with pytest.raises(SettingError, match="not finite"):
        out_of_bag(np.full_like(p, np.inf), np.zeros(4, int), np.zeros((3, 4)))


def test_that_all_votes_are_right_is_no_certainty():
    rng = np.random.default_rng(0)
    targets = np.arange(50) % 3
    predictions = np.broadcast_to(np.eye(3)[targets], (20, 50, 3))
    found = out_of_bag(predictions, targets, rng.integers(3, size=(20, 50)))
    assert found.accuracy.value == 1
    assert 0.9 < found.accuracy.low < 0.95
