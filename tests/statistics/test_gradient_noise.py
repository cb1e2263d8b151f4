"""From statistics to |G|², tr Σ and B_simple: by enumeration, in closed form and by coverage."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest

from experiments.coverage import noise_scale as coverage
from noisescale.errors import MeasurementError, SettingError
from noisescale.statistics.gradient_noise import mean_estimate, noise_scale
from noisescale.statistics.hessian_noise import CurvatureNoise, ProbeBlocks, curvature_noise
from noisescale.statistics.sample import Sample

VECTORS = np.array(
    [[1.0, 0.0, 2.0], [0.5, -1.0, 1.0], [2.0, 3.0, -1.0], [0.0, 1.0, 1.0], [4.0, 0.5, 0.0]]
)


def statistics(vectors, groups=None):
    """|g_i|² (n, L), g_i·ḡ (n, L) and |ḡ|² (L,) of gradients (n, L), each column a tensor."""
    mean = vectors.mean(0)
    return vectors**2, vectors * mean, mean**2


def measured(vectors, *, population, size=None, **options):
    return noise_scale(
        *statistics(vectors), population=population, population_size=size or len(vectors), **options
    )


def test_the_mean_over_all_subsets_is_the_data_sets_own():
    found = [
        measured(VECTORS[list(chosen)], population="dataset", size=5)
        for chosen in itertools.combinations(range(5), 3)
    ]
    centred = VECTORS - VECTORS.mean(0)
    norms = [one.squared_gradient_norm.value for one in found]
    variances = [one.gradient_variance.value for one in found]
    assert np.mean(norms) == pytest.approx((VECTORS.mean(0) ** 2).sum(), rel=1e-12)
    assert np.mean(variances) == pytest.approx((centred**2).sum() / 5, rel=1e-12)  # Σ with 1/N


def test_the_mean_over_all_samples_is_the_distributions():
    """Uniform over five vectors, drawn with replacement."""
    draws = itertools.product(range(5), repeat=3)
    found = [measured(VECTORS[list(draw)], population="distribution", size=10) for draw in draws]
    centred = VECTORS - VECTORS.mean(0)
    norms = [one.squared_gradient_norm.value for one in found]
    assert np.mean(norms) == pytest.approx((VECTORS.mean(0) ** 2).sum(), rel=1e-12)
    assert min(norms) < 0  # never clamped
    variances = [one.gradient_variance.value for one in found]
    assert np.mean(variances) == pytest.approx((centred**2).sum() / 5, rel=1e-12)


def test_the_whole_data_set_is_exact():
    found = measured(VECTORS, population="dataset")
    assert found.resolved
    assert found.simple.stderr == 0
    mean = VECTORS.mean(0)
    assert found.simple.value == pytest.approx(((VECTORS - mean) ** 2).sum() / 5 / (mean**2).sum())


@pytest.mark.parametrize("population", ["dataset", "distribution"])
def test_influence_functions_give_the_right_errors(population):
    """400 draws of 300 skewed, unequal gradients: coverage of all intervals, bias in stderrs."""
    generator = np.random.default_rng(0)
    scale = np.linspace(0.2, 2, 12)
    truth_mean = np.linspace(0.5, -0.4, 12)

    def draw(n):
        return truth_mean + scale * (generator.gamma(4, 0.5, size=(n, 12)) - 2)

    whole = draw(900)
    mean, variance = truth_mean, scale**2
    if population == "dataset":
        mean, variance = whole.mean(0), whole.var(0)
    truth = {"squared_gradient_norm": (mean**2).sum(), "gradient_variance": variance.sum()}
    truth["simple"] = truth["gradient_variance"] / truth["squared_gradient_norm"]
    deviations = {name: [] for name in truth}
    hits = dict.fromkeys(truth, 0)
    for _ in range(400):
        sample = (
            draw(300)
            if population == "distribution"
            else generator.choice(whole, 300, replace=False)
        )
        found = measured(sample, population=population, size=900)
        for name, value in truth.items():
            estimate = getattr(found, name)
            hits[name] += estimate.low <= value <= estimate.high
            deviations[name].append((estimate.value - value) / estimate.stderr)
    for name in truth:
        assert 0.92 <= hits[name] / 400 <= 0.98, name
        assert abs(np.mean(deviations[name])) < 4 / 20, name


def test_the_error_of_the_norm_is_the_jackknifes():
    """By leaving each gradient out in turn; exactly (n−1)/(n−2) times ours, of first order."""
    n = len(VECTORS)

    def norm(vectors):
        return measured(vectors, population="distribution", size=9).squared_gradient_norm

    without = np.array([norm(np.delete(VECTORS, index, 0)).value for index in range(n)])
    jackknife = math.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum())
    assert norm(VECTORS).stderr * (n - 1) / (n - 2) == pytest.approx(jackknife)


def test_two_examples_tell_nothing_of_the_error_of_the_norm():
    """The projection of either on the other is the same number, which is no sign of certainty."""
    found = measured(VECTORS[:2], population="distribution", size=9)
    assert not found.resolved
    assert math.isnan(found.squared_gradient_norm.stderr)
    assert found.examples_to_resolve is None
    assert found.notes == ()


def test_the_unresolved_is_called_so_with_a_bound_and_what_it_takes():
    generator = np.random.default_rng(3)
    draws = [
        measured(generator.normal(size=(100, 30)), population="distribution", size=4000)
        for _ in range(40)
    ]
    negative = [found for found in draws if found.squared_gradient_norm.value < 0]  # never clamped
    assert 10 < len(negative) < 30
    unresolved = [found for found in draws if not found.resolved]
    assert len(unresolved) >= 36
    for found in unresolved:
        assert math.isnan(found.simple.value)
        assert found.simple.high == math.inf
        assert 10 < found.simple.low < math.inf
        assert 100 < found.examples_to_resolve <= 400
        record = json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert record["simple"] == {
            "value": None,
            "stderr": None,
            "low": found.simple.low,
            "high": None,
        }
        assert record["notes"] == []
    signal = generator.normal(size=(1000, 30)) + 0.1  # B_simple = 30/(30·.01) = 100
    weak = measured(signal[:40], population="distribution", size=4000)
    assert not weak.resolved
    assert weak.simple.low < 100
    assert measured(signal, population="distribution", size=4000).resolved


def test_fitted_examples_passed_off_as_fresh_ones_are_found_out():
    noise = np.random.default_rng(3).normal(size=(100, 30))
    found = measured(noise - noise.mean(0), population="distribution", size=4000)
    assert not found.resolved
    assert found.simple.low > 1000
    assert "far below zero" in found.notes[0]


def test_examples_to_resolve_make_the_norm_significant():
    """That many, at the same values per example, and of a data set never more than all of them."""
    vectors = np.random.default_rng(5).normal(size=(60, 10)) + 0.17
    needed = {}
    for population in ("dataset", "distribution"):
        found = measured(vectors, population=population, size=150)
        assert not found.resolved
        needed[population] = found.examples_to_resolve
        norm = found.squared_gradient_norm
        share = 1 / 60 - (1 / 150 if population == "dataset" else 0)
        then = 1 / needed[population] - (1 / 150 if population == "dataset" else 0)
        stderr = norm.stderr * math.sqrt(then / share)
        assert max(norm.value, norm.stderr) / stderr == pytest.approx(2, abs=0.05)
    assert 60 < needed["dataset"] <= 150
    assert needed["dataset"] < needed["distribution"]


def test_layers_sum_to_the_whole():
    found = measured(VECTORS, population="distribution", size=9, names=["a", "b", "c"])
    layers = found.per_layer
    assert list(layers["parameter"]) == ["a", "b", "c"]
    assert layers["squared_gradient_norm"].sum() == pytest.approx(found.squared_gradient_norm.value)
    assert layers["gradient_variance"].sum() == pytest.approx(found.gradient_variance.value)
    assert (layers["gradient_variance_stderr"] > 0).all()


def test_without_projections_there_are_values_and_no_errors():
    norms, _, means = statistics(VECTORS)
    found = noise_scale(norms, None, means, population="distribution", population_size=9)
    assert (
        found.gradient_variance.value
        == measured(VECTORS, population="distribution").gradient_variance.value
    )
    assert math.isnan(found.gradient_variance.stderr)
    assert not found.resolved


def test_bad_arguments_are_named():
    norms, projections, means = statistics(VECTORS)
    for arguments, options, message in (
        ((norms, projections, means), {"population": "both"}, "population 'both'"),
        ((norms[:1], projections[:1], means), {}, "a variance takes at least 2"),
        (
            (norms, projections, means),
            {"population_size": 4},
            "5 examples out of a population of 4",
        ),
        ((norms, projections, means[:2]), {}, r"give \(n, L\) and \(L,\)"),
        ((norms, projections[:3], means), {}, r"projections \(3, 3\)"),
    ):
        with pytest.raises(SettingError, match=message):
            noise_scale(*arguments, **{"population": "dataset", "population_size": 9} | options)


def test_the_mean_loss_has_its_sampling_error():
    values = np.array([1.0, 2.0, 4.0, 5.0])

    def of(population, size):
        return Sample(num_examples=4, population_size=size, population=population)

    assert mean_estimate(values, of("dataset", 4)).stderr == 0
    fresh = mean_estimate(values, of("distribution", 4))
    assert fresh.stderr == pytest.approx(values.std(ddof=1) / 2)
    part = mean_estimate(values, of("dataset", 8))
    assert part.stderr == pytest.approx(values.std(ddof=1) / 2 * math.sqrt(0.5))


def test_predicted_learning_rates_minimise_the_expected_loss():
    """(2.6): E L(θ − εg_B) − L(θ) = −ε|G|² + ½ε²(GᵀHG + tr(HΣ)/B), minimised on a grid."""
    squared_norm, trace, curvature = 2.0, 30.0, 5.0
    found = CurvatureNoise(
        values=np.array([squared_norm, trace, curvature]),
        covariance=np.diag([0.01, 0.5, 0.02]),
        dof=30,
        num_examples=100,
        hessian_examples=50,
        num_matvecs=1,
    )
    rates = np.linspace(0.001, 1, 20_000)
    for batch_size in (1, 8, 100_000_000):
        change = -rates * squared_norm + 0.5 * rates**2 * (curvature + trace / batch_size)
        best = rates[change.argmin()]
        assert found.optimal_learning_rate(batch_size).value == pytest.approx(best, abs=1e-4)
    assert found.max_learning_rate.value == pytest.approx(0.4)
    assert found.full.value == pytest.approx(6)
    assert found.full.low < 6 < found.full.high


def test_the_best_step_of_batches_without_replacement_minimises_their_mean_loss():
    """Of a quadratic with one gradient per example, over all batches; at B = N that of the mean."""
    hessian = np.diag([3.0, 1.0, 0.2])
    mean = VECTORS.mean(0)
    centred = VECTORS - mean
    curvature = CurvatureNoise(
        values=np.array(
            [
                mean @ mean,
                np.trace(hessian @ centred.T @ centred) / len(VECTORS),
                mean @ hessian @ mean,
            ]
        ),
        covariance=np.zeros((3, 3)),
        dof=10,
        num_examples=5,
        hessian_examples=5,
        num_matvecs=1,
        population_size=5,
    )
    for size in (1, 2, 4, 5):
        batches = [
            VECTORS[list(chosen)].mean(0) for chosen in itertools.combinations(range(5), size)
        ]
        # E L(θ − εg_B) − L(θ) = −ε·E Gᵀg_B + ½ε²·E g_BᵀHg_B
        best = np.mean([mean @ batch for batch in batches]) / np.mean(
            [batch @ hessian @ batch for batch in batches]
        )
        assert curvature.optimal_learning_rate(size).value == pytest.approx(best, rel=1e-12)
    assert curvature.optimal_learning_rate(5).value == curvature.max_learning_rate.value
    with pytest.raises(SettingError, match="batch size 6: give 1 to 5"):
        curvature.optimal_learning_rate(6)


def test_effective_examples_tell_the_error_of_the_variance():
    """Relative standard error √(1/n_eff − 1/n) where gradients are long beside their mean."""
    generator = np.random.default_rng(4)
    vectors = generator.standard_normal((400, 30)) * np.exp(
        0.5 * generator.standard_normal((400, 1))
    )
    found = measured(vectors, population="distribution")
    deviations = [((vector - vectors.mean(0)) ** 2).sum() for vector in vectors]
    effective = sum(deviations) ** 2 / sum(deviation**2 for deviation in deviations)
    assert found.effective_examples == pytest.approx(effective)
    assert found.noisiest_share == pytest.approx(sum(sorted(deviations)[-4:]) / sum(deviations))
    variance = found.gradient_variance
    error = math.sqrt(1 / effective - 1 / 400)
    assert variance.stderr / variance.value == pytest.approx(error, rel=0.02)
    record = found.to_dict()
    assert record["effective_examples"] == found.effective_examples
    assert record["noisiest_share"] == found.noisiest_share
    norms, _, means = statistics(vectors)
    without = noise_scale(norms, None, means, population="distribution", population_size=400)
    assert (without.effective_examples, without.noisiest_share) == (None, None)


def test_one_outlier_in_the_sample_is_said():
    vectors = np.random.default_rng(0).standard_normal((200, 20)) + 0.3
    assert measured(vectors, population="dataset", size=2000).notes == ()
    vectors[0] *= 300
    found = measured(vectors, population="dataset", size=2000)
    assert found.effective_examples < 1.1
    assert found.noisiest_share > 0.99
    assert "heavy tails: n_eff is 1.0" in found.notes[0]
    # known in full, there is nothing to warn of
    assert measured(vectors, population="dataset", size=200).notes == ()


@pytest.mark.statistical
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("normal", 100),
        ("t(3) norms", 300),
        ("log-normal norms", 100),
        ("regression, log-normal", 960),
    ],
)
def test_intervals_cover_where_few_examples_hold_the_noise(name, size):
    """As often as the committed table says, which Student's t does not."""
    cases = [*coverage.gradient_cases((size,)), *coverage.regression_cases()]
    (case,) = (case for case in cases if (case.name, case.num_examples) == (name, size))
    draws = 150
    found = coverage.simulate(case, draws)
    table = pd.read_csv(coverage.TABLES / "noise_scale.csv", comment="#").set_index(
        ["case", "num_examples"]
    )
    row = table.loc[name, size]
    for quantity in case.truth:
        spread = math.sqrt(row[quantity] * (1 - row[quantity]) * (1 / draws + 1 / row["draws"]))
        assert abs(found[quantity] - row[quantity]) <= 4 * spread + 1 / draws, quantity
    if name == "normal":
        assert found["simple_width"] == 1  # as tight as ever
    else:
        variance = next(iter(case.truth))
        assert found[variance] > found[f"{variance}_student"] + 0.08


@pytest.mark.statistical
def test_an_outlier_out_of_the_sample_is_not_covered_and_in_it_is_warned_of():
    cases = {(case.name, case.num_examples): case for case in coverage.outlier_cases()}
    unseen = coverage.simulate(cases["one outlier", 200], 100)
    assert unseen["gradient_variance"] == unseen["warned"] < 0.25  # a tenth of the samples have it
    seen = coverage.simulate(cases["one outlier, in the sample", 200], 50)
    assert seen["warned"] == seen["gradient_variance"] == 1


def test_the_histogram_counts_the_examples_and_shares_out_their_deviations():
    """Against a plain loop over the examples and the bins."""
    gradients = np.random.default_rng(5).standard_t(4, size=(300, 7))
    mean = gradients.mean(0)
    squared = (gradients**2).sum(1)
    noise = noise_scale(
        squared[:, None],
        gradients @ mean,
        np.array([mean @ mean]),
        population="dataset",
        population_size=900,
    )
    table = noise.gradient_norms
    deviations = ((gradients - mean) ** 2).sum(1)
    norms = np.sqrt(squared)
    assert len(table) == 35  # 2√n
    ratios = table["high"] / table["low"]
    np.testing.assert_allclose(ratios, ratios[0])
    np.testing.assert_allclose(
        [table["low"].iloc[0], table["high"].iloc[-1]], [norms.min(), norms.max()]
    )
    for row in table.iloc[1:-1].to_dict("records"):
        inside = (norms >= row["low"]) & (norms < row["high"])
        assert row["examples"] == inside.sum()
        share = deviations[inside].sum() / deviations.sum()
        assert row["variance_share"] == pytest.approx(share, abs=1e-12)
    assert table["examples"].sum() == 300
    assert table["variance_share"].sum() == pytest.approx(1)


def test_the_histogram_of_a_gradient_that_is_zero_or_one_alone_or_without_projections():
    def of(squared, projections):
        return noise_scale(
            np.array(squared, dtype=float)[:, None],
            None if projections is None else np.array(projections, dtype=float),
            np.array([1.0]),
            population="distribution",
            population_size=9,
        ).gradient_norms

    zero = of([0.0, 1.0, 4.0], [0.0, 1.0, 2.0])
    assert zero["examples"].iloc[0] == 1  # which has no logarithm
    assert zero["low"].iloc[0] > 0
    alike = of([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert alike["examples"].sum() == 3
    assert alike["variance_share"].isna().all()  # no deviation to share out
    assert of([1.0, 4.0, 9.0], None)["variance_share"].isna().all()
    nothing = of([0.0, 0.0, 0.0], None)
    assert nothing["examples"].sum() == 3


@pytest.mark.parametrize("effects", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_probes_taken_with_a_quarter_of_the_groups_have_their_own_error(effects):
    """Forms with random effects of 32 blocks, 16 groups and pairs; what counts twice is known.

    Blocks' means have 1/4 of the groups' effects' variance and groups' 1/8 of the blocks', pairs'
    count in both.
    """
    generator = np.random.default_rng(0)
    of_block, of_group, of_pair = effects
    taken = (np.arange(32)[:, None] + np.arange(16)) % 4 == 0
    values, variances = [], []
    for _ in range(2000):
        forms = (
            10
            + of_block * generator.standard_normal((32, 1))
            + of_group * generator.standard_normal(16)
            + of_pair * generator.standard_normal((32, 16))
        )
        found = curvature_noise(
            ProbeBlocks(
                shares=np.full(32, 1 / 32),
                on_mean=np.zeros(32),
                on_image=np.zeros(32),
                deflated=np.zeros(32),
                variances=np.zeros(32),
                forms=np.where(taken, forms, np.nan),
            ),
            squared_norm=1.0,
            mean_forms=np.ones(16),
            group_shares=np.full(16, 1 / 16),
            sample=Sample(num_examples=320, population_size=320, population="distribution"),
            hessian_examples=160,
            num_matvecs=9,
        )
        values.append(found.values[1])
        variances.append(found.covariance[1, 1])
    # of 32 blocks, of 16 groups, of 128 pairs
    truth = of_block / 32 + of_group / 16 + of_pair / 128
    assert np.mean(values) == pytest.approx(10, abs=4 * math.sqrt(truth / 2000))
    assert np.var(values) == pytest.approx(truth, rel=0.15)
    counted = (
        of_block * (1 / 32 + 0.8 / 128) + of_group * (1 / 16 + 0.8 / 128)
    ) + 2 * of_pair / 128
    assert np.mean(variances) == pytest.approx(counted, rel=0.05)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gradients_that_are_not_finite_have_no_noise_scale(value):
    squares = np.ones((5, 1))
    squares[2] = value
    with pytest.raises(MeasurementError, match="not finite"):
        noise_scale(squares, np.ones((5, 1)), np.ones(1), population="dataset", population_size=10)


def test_nothing_is_resolved_whose_signal_may_be_none():
    """By the intervals of skew gradients, which reach further down than a symmetric one."""
    rng = np.random.default_rng(1)
    unresolved = 0
    for _ in range(60):
        gradients = rng.lognormal(sigma=2.0, size=(300, 1)) * rng.normal(size=(300, 20)) + 1.0
        mean = gradients.mean(0)
        noise = noise_scale(
            np.square(gradients).sum(1, keepdims=True),
            (gradients @ mean)[:, None],
            np.array([mean @ mean]),
            population="distribution",
            population_size=10**6,
        )
        assert noise.squared_gradient_norm.low > 0 or not noise.resolved
        unresolved += not noise.resolved
    assert 0 < unresolved < 60
