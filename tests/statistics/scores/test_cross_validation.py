import json

import numpy as np
import pytest

from noisescale.errors import SettingError
from noisescale.statistics.scores.cross_validation import choose_rate, fold_indices
from tests.helpers.command_line import strict

RATES = [0.4, 0.1, 0.8, 0.2]  # in any order
SCORES = np.array([[0.22, 0.30, np.inf, 0.20], [0.26, 0.34, 0.9, 0.24], [0.23, 0.31, 0.8, 0.22]])


def test_the_rule_is_that_of_a_plain_loop():
    found = choose_rate(RATES, SCORES)
    means = {rate: SCORES[:, k].mean() for k, rate in enumerate(RATES) if rate != 0.8}
    best = min(means, key=means.get)
    stderr = SCORES[:, RATES.index(best)].std(ddof=1) / np.sqrt(3)
    alike = [rate for rate, mean in means.items() if mean <= means[best] + stderr]
    assert (found.best, found.chosen) == (best, max(alike)) == (0.2, 0.2)
    assert found.rates == (0.1, 0.2, 0.4, 0.8)
    assert [score.kind for score in found.scores] == [*["interval"] * 3, "undefined"]
    assert found.scores[1].stderr == pytest.approx(stderr)


def test_within_one_standard_error_the_preferred_end_is_taken():
    near = SCORES.copy()
    near[:, 0] = near[:, 3] + 0.01  # .01 is less than the error of .0115
    near[:, 1] = near[:, 3] + 0.005
    assert choose_rate(RATES, near).chosen == 0.4
    assert choose_rate(RATES, near, prefer="smallest").chosen == 0.1
    assert choose_rate(RATES, near).best == 0.2
    assert "chosen" in repr(choose_rate(RATES, near))
    record = strict(json.dumps(choose_rate(RATES, near).to_dict(), allow_nan=False))
    assert record["rates"][3]["score"]["value"] is None


def test_folds_hold_every_example_out_once():
    folds = fold_indices(23, 5, seed=3)
    assert sorted(np.concatenate(folds)) == list(range(23))
    assert [len(fold) for fold in folds] == [5, 5, 5, 4, 4]
    assert not np.array_equal(folds[0], np.arange(5))
    assert np.array_equal(folds[2], fold_indices(23, 5, seed=3)[2])
    assert not np.array_equal(folds[2], fold_indices(23, 5, seed=4)[2])


@pytest.mark.parametrize(
    ("rates", "scores", "message"),
    [
        ([0.1, 0.2], np.ones((1, 2)), "two or more folds"),
        ([0.1, 0.2], np.ones((3, 3)), r"scores of shape \(3, 3\) for 2 rates"),
        ([0.1, 0.1], np.ones((3, 2)), "each once"),
        ([0.1, -0.1], np.ones((3, 2)), "above 0"),
        ([0.1, 0.2], np.full((3, 2), np.nan), "no learning rate at which all folds trained"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(rates, scores, message):
    with pytest.raises(SettingError, match=message):
        choose_rate(rates, scores)


def test_folds_that_cannot_be_are_refused():
    for num_folds in (1, 24):
        with pytest.raises(SettingError, match="give 2 to 23"):
            fold_indices(23, num_folds)
