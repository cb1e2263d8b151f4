"""Oracles: enumeration of small worlds, plain loops over pairs, the analysis of variance."""

import itertools
import json

import numpy as np
import pytest

from noisescale.errors import SettingError
from noisescale.statistics.scores.bias_variance import bias_variance
from tests.helpers.command_line import strict

FEW = (3, 4, 6, 3)  # draws of data, draws of seed, examples, classes


def probabilities(shape, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), size=shape[:-1])


def brier(p, classes):
    return np.square(p - np.eye(p.shape[-1])[classes]).sum(-1).mean()


def test_parts_are_unbiased_by_enumeration_of_every_draw_from_a_discrete_world():
    # a world of three data sets and two seeds, all equally likely: a table of what each pair learns
    rng = np.random.default_rng(1)
    world = rng.normal(size=(3, 2, 2, 2))  # [data, seed, N, C]
    outcomes = rng.normal(size=(2, 2))
    mean = world.mean((0, 1))
    of_data = world.mean(1) - mean
    of_seed = world.mean(0) - mean
    rest = world - mean - of_data[:, None] - of_seed[None]
    truth = {
        "score": np.square(world - outcomes).sum((-2, -1)).mean() / 2,
        "bias² + noise": np.square(mean - outcomes).sum() / 2,
        "variance, data": np.square(of_data).sum((-2, -1)).mean() / 2,
        "variance, seed": np.square(of_seed).sum((-2, -1)).mean() / 2,
        "variance, data × seed": np.square(rest).sum((-2, -1)).mean() / 2,
    }
    found = {name: [] for name in truth}
    for data in itertools.product(range(3), repeat=2):  # draws with replacement are independent
        for seeds in itertools.product(range(2), repeat=3):
            result = bias_variance(world[np.ix_(data, seeds)], outcomes)
            for name, values in found.items():
                values.append(float(result.estimates[name]))
    for name, values in found.items():
        assert np.mean(values) == pytest.approx(truth[name], rel=1e-12), name
    assert truth["score"] == pytest.approx(sum(list(truth.values())[1:]))


def test_components_are_those_of_the_two_way_analysis_of_variance():
    data, seeds, num_examples, _ = FEW
    p = probabilities(FEW)
    grand = p.mean((0, 1))
    of_data, of_seed = p.mean(1), p.mean(0)
    rest = p - of_data[:, None] - of_seed[None] + grand
    squares = {
        "data": seeds * np.square(of_data - grand).sum() / (data - 1),
        "seed": data * np.square(of_seed - grand).sum() / (seeds - 1),
        "rest": np.square(rest).sum() / ((data - 1) * (seeds - 1)),
    }  # mean squares, whose expectations are σ²_rest + seeds·σ²_data and so on
    components = bias_variance(p, np.zeros(num_examples, dtype=int)).components
    found = [float(part) * num_examples for part in components.values()]
    assert list(components) == ["data", "seed", "data × seed"]
    assert found == pytest.approx(
        [
            (squares["data"] - squares["rest"]) / seeds,
            (squares["seed"] - squares["rest"]) / data,
            squares["rest"],
        ]
    )


def test_three_factors_are_plain_means_over_pairs_of_models():
    p = probabilities((3, 2, 2, 4, 3), seed=2)
    classes = np.array([0, 2, 1, 1])
    errors = (p - np.eye(3)[classes]).reshape(12, 4, 3)
    levels = list(itertools.product(range(3), range(2), range(2)))
    means = {}
    for shared in itertools.product((False, True), repeat=3):
        pairs = [
            np.sum(errors[a] * errors[b]) / 4
            for a, b in itertools.product(range(12), repeat=2)
            if tuple(x == y for x, y in zip(levels[a], levels[b], strict=True)) == shared
        ]
        means[shared] = np.mean(pairs)
    result = bias_variance(p, classes, factors=("data", "start", "order"))
    none, data, order = (False,) * 3, (True, False, False), (False, False, True)
    assert float(result.bias_and_noise) == pytest.approx(means[none])
    assert float(result.components["order"]) == pytest.approx(means[order] - means[none])
    assert float(result.components["data × order"]) == pytest.approx(
        means[True, False, True] - means[data] - means[order] + means[none]
    )
    assert float(result.score) == pytest.approx(means[True, True, True])
    assert float(result.score) == pytest.approx(brier(p, classes))
    parts = [result.bias_and_noise, *result.components.values()]
    assert float(result.score) == pytest.approx(sum(map(float, parts)))


def test_known_outcome_probabilities_tell_noise_from_bias():
    rng = np.random.default_rng(3)
    expected = probabilities((4000, 3), seed=4)
    classes = (expected.cumsum(1) > rng.random((4000, 1))).argmax(1)
    p = np.broadcast_to(np.full(3, 1 / 3), (3, 3, 4000, 3))  # models that all say the same
    result = bias_variance(p, classes, expected=expected)
    assert float(result.squared_bias) == pytest.approx(np.square(1 / 3 - expected).sum(1).mean())
    assert result.noise.low < 1 - np.square(expected).sum(1).mean() < result.noise.high
    assert float(result.variance) == pytest.approx(0, abs=1e-12)


def test_the_score_of_an_ensemble_is_that_of_combined_models():
    # of all data sets of a world of four, in pairs: each ensemble of two is scored by itself
    world = probabilities((4, 2, 5, 3), seed=5)
    classes = np.array([0, 1, 2, 0, 1])
    result = bias_variance(world, classes)
    pairs = list(itertools.combinations(range(4), 2))
    combined = [brier((world[a] + world[b]) / 2, classes) for a, b in pairs]
    assert float(result.ensemble(2, over=["data"])) == pytest.approx(np.mean(combined))
    diagonal = [brier((world[a, 0] + world[b, 1]) / 2, classes) for a, b in pairs] + [
        brier((world[a, 1] + world[b, 0]) / 2, classes) for a, b in pairs
    ]  # other data and another seed
    assert float(result.ensemble(2)) == pytest.approx(np.mean(diagonal))
    assert float(result.bagging_gain(2)) == pytest.approx(brier(world, classes) - np.mean(diagonal))
    assert float(result.ensemble(1)) == float(result.score)


def test_errors_are_the_jackknife_over_draws_and_examples():
    p = probabilities(FEW, seed=6)
    classes = np.arange(6) % 3
    result = bias_variance(p, classes)
    total = 0.0
    for axis, levels in enumerate(FEW[:3]):
        left_out = [
            float(
                bias_variance(
                    np.delete(p, k, axis), np.delete(classes, k) if axis == 2 else classes
                ).components["data"]
            )
            for k in range(levels)
        ]
        total += (levels - 1) / levels * np.square(left_out - np.mean(left_out)).sum()
    assert result.components["data"].stderr == pytest.approx(np.sqrt(total))


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_intervals_hold_the_truth(shared):
    rng = np.random.default_rng(7)
    sizes = {"data": 0.3, "seed": 0.2, "data × seed": 0.1}
    shape = {"data": (8, 1), "seed": (1, 4), "data × seed": (8, 4)}
    held = dict.fromkeys(sizes, 0)
    num_worlds = 100
    for _ in range(num_worlds):
        load = rng.normal(size=(5, 60)) / np.sqrt(5)  # makes examples err together
        p = rng.normal(size=60)
        for name, sd in sizes.items():
            alone = rng.normal(size=(*shape[name], 60))
            together = rng.normal(size=(*shape[name], 5)) @ load
            p = p + sd * (np.sqrt(shared) * together + np.sqrt(1 - shared) * alone)
        components = bias_variance(p[..., None], np.zeros((60, 1))).components
        for name, sd in sizes.items():
            held[name] += components[name].low <= sd**2 <= components[name].high
    for name, count in held.items():  # .95 less four binomial standard errors; wide is allowed
        assert count >= 0.95 * num_worlds - 4 * np.sqrt(num_worlds * 0.95 * 0.05), name


def test_a_difference_is_paired_by_draws_and_examples():
    rng = np.random.default_rng(8)
    outcomes = np.zeros((50, 1))
    base = rng.normal(size=(4, 1, 50, 1)) + rng.normal(size=(1, 3, 50, 1))
    large = bias_variance(base, outcomes)
    small = bias_variance(1.1 * base, outcomes)
    apart = large.difference(small)
    assert float(apart["variance"]) == pytest.approx(0.21 * float(large.variance))
    assert apart["variance"].stderr == pytest.approx(0.21 * large.variance.stderr)
    with pytest.raises(SettingError, match="4 data × 3 seed draws on 50 examples and 3 data"):
        large.difference(bias_variance(base[:3], outcomes))


def test_two_draws_of_a_factor_are_noted():
    p = probabilities((5, 2, 6, 3))
    result = bias_variance(p, np.zeros(6, dtype=int))
    assert len(result.notes) == 1
    assert "two draws of seed" in result.notes[0]
    assert "errors hold for these two" in " ".join(repr(result).split())
    record = strict(json.dumps(result.to_dict(), allow_nan=False))
    assert record["components"]["data"]["value"] == float(result.components["data"])
    assert result.to_frame().loc["variance", "value"] == float(result.variance)


@pytest.mark.parametrize(
    ("p", "targets", "options", "message"),
    [
        (np.zeros((3, 2, 5, 2)), np.full(5, 2), {}, "classes from 2 to 2: there are predictions"),
        (np.zeros((3, 2, 5, 2)), np.zeros(4), {}, r"targets of shape \(4,\): give classes"),
        (np.zeros((3, 5, 2)), np.zeros(5, int), {}, "give an axis for each factor"),
        (np.zeros((1, 2, 5, 2)), np.zeros(5, int), {}, "1 draw of data: give two or more"),
        (np.full((2, 2, 5, 2), np.nan), np.zeros(5, int), {}, "leave out models that diverged"),
        (np.zeros((2, 2, 5, 2)), np.zeros(5, int), {"factors": ("a", "a")}, "different names"),
        (np.zeros((2, 2, 5, 2)), np.zeros(5, int), {"expected": np.zeros(5)}, "expected of shape"),
    ],
)
def test_what_does_not_fit_is_refused(p, targets, options, message):
    with pytest.raises(SettingError, match=message):
        bias_variance(p, targets, **options)


def test_ensembles_that_cannot_be_are_refused():
    result = bias_variance(probabilities(FEW), np.zeros(6, dtype=int))
    with pytest.raises(SettingError, match="models of an ensemble 0"):
        result.ensemble(0)
    with pytest.raises(SettingError, match="over order: the factors are data, seed"):
        result.ensemble(2, over=["order"])
