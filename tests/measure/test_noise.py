"""The measurement of one checkpoint: closed forms, coverage, parts, and what must not change it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from noisescale.errors import MeasurementError, SettingError
from noisescale.measure.curvature import products
from noisescale.measure.noise import measure_noise
from noisescale.measure.noise_parts.options import NoiseOptions
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.problems.problem import Examples
from noisescale.problems.synthetic import linear_regression
from noisescale.training.config import TrainConfig
from noisescale.training.trainer import train
from tests.helpers.models import PROBLEMS
from tests.helpers.problems import classification, quadratic, seeded

DOUBLE = torch.float64


def truth(exact):
    """The quantities of the noise scale from G, Σ and H."""
    gradient, covariance, hessian = exact.gradient, exact.covariance, exact.hessian
    squared_norm, variance = gradient @ gradient, covariance.trace()
    trace, curvature = (hessian @ covariance).trace(), gradient @ hessian @ gradient
    found = {"norm": squared_norm, "variance": variance, "simple": variance / squared_norm}
    found |= {
        "trace": trace,
        "curvature": curvature,
        "full": trace / curvature,
        "rate": squared_norm / curvature,
    }
    return {name: float(value) for name, value in found.items()}


def estimates(found):
    values = {
        "norm": found.squared_gradient_norm,
        "variance": found.gradient_variance,
        "simple": found.simple,
    }
    if (curvature := found.curvature) is not None:
        values |= {"trace": curvature.covariance_trace, "curvature": curvature.gradient_curvature}
        values |= {"full": curvature.full, "rate": curvature.max_learning_rate}
    return values


def regression(seed, num_examples):
    return linear_regression(
        input_variances=torch.linspace(0.2, 2, 12, dtype=DOUBLE),
        weights=torch.linspace(-1, 1, 12, dtype=DOUBLE),
        noise=0.7,
        num_examples=num_examples,
        generator=seeded(seed),
    )


def at_start(synthetic, population):
    (start,) = synthetic.problem.model.parameters()
    return truth(synthetic.moments(start.detach().flatten(), population))


@pytest.mark.parametrize("make", [lambda: quadratic(num_examples=200), lambda: regression(0, 200)])
def test_the_whole_data_set_is_exact_and_curvature_within_its_probes(make):
    synthetic = make()
    wanted = at_start(synthetic, "dataset")
    found = estimates(measure_noise(synthetic.problem, hessian=True, hessian_examples=200))
    for name in ("norm", "variance", "simple"):
        assert found[name].value == pytest.approx(wanted[name], rel=1e-10)
        assert found[name].stderr == 0
    for name in ("trace", "curvature", "full", "rate"):
        assert abs(found[name].value - wanted[name]) <= 4 * found[name].stderr + 1e-9 * abs(
            wanted[name]
        )
        assert found[name].stderr < 0.05 * abs(wanted[name])


@pytest.mark.parametrize(
    "make", [lambda: quadratic(num_examples=4000), lambda: regression(0, 4000)]
)
def test_fresh_examples_give_the_distributions_closed_form(make):
    synthetic = make()
    wanted = at_start(synthetic, "distribution")
    found = estimates(measure_noise(synthetic.problem, population="distribution", hessian=True))
    for name, value in wanted.items():
        assert abs(found[name].value - value) < 4 * found[name].stderr
        assert found[name].stderr < 0.3 * abs(value)


@pytest.mark.statistical
@pytest.mark.slow
def test_intervals_cover_over_fresh_data_and_over_subsets():
    """400 draws each, B_noise and its parts included; n = 60·B_simple and more."""
    big = regression(1, 4000)
    fresh, own = at_start(big, "distribution"), at_start(big, "dataset")

    def draw(seed, population):
        options = {
            "hessian": True,
            "num_probes": 16,
            "generator": seeded(seed),
            "population": population,
        }
        if population == "distribution":
            return measure_noise(
                regression(seed + 10, 1200).problem, hessian_examples=400, **options
            )
        return measure_noise(big.problem, num_examples=800, hessian_examples=500, **options)

    for population, wanted in (("distribution", fresh), ("dataset", own)):
        found = [estimates(draw(seed, population)) for seed in range(400)]
        for name, value in wanted.items():
            share = np.mean([one[name].low <= value <= one[name].high for one in found])
            assert 0.92 <= share <= 0.98, (population, name, share)


@pytest.mark.statistical
@pytest.mark.slow
def test_intervals_cover_over_random_subsets_of_mnist(mnist_dir):
    """400 subsets of n = 12·B_simple against all 60,000, at initialisation and after 100 steps."""
    problem = build_problem(ProblemConfig(width=64), data_dir=mnist_dir)
    config = TrainConfig(batch_size=64, learning_rate=0.05, max_steps=100)
    *_, later = train(problem, config, checkpoint_steps=[100])
    for params in (None, later.params):
        wanted = measure_noise(problem, params).simple.value
        size = math.ceil(12 * wanted)
        hits = 0
        for seed in range(400):
            found = measure_noise(problem, params, num_examples=size, generator=seeded(seed)).simple
            hits += found.low <= wanted <= found.high
        assert 0.92 <= hits / 400 <= 0.98, hits / 400


@pytest.mark.slow
def test_mnist_at_initialisation_gives_the_reference_value(mnist_dir):
    found = measure_noise(
        build_problem(ProblemConfig(), data_dir=mnist_dir), population="distribution"
    )
    assert found.simple.value == pytest.approx(112.3, abs=0.1)
    assert found.simple.stderr == pytest.approx(0.66, abs=0.05)
    assert found.gradient_variance.value == pytest.approx(70.32, abs=0.01)
    assert found.squared_gradient_norm.value == pytest.approx(0.6264, abs=1e-4)


def test_deflation_makes_probes_precise_and_is_unbiased_without_convergence():
    """A steep direction with most of the trace: plain probes spread by half the value and more."""
    variances = torch.cat([torch.tensor([30.0]), torch.full((15,), 0.1)]).to(DOUBLE)
    synthetic = linear_regression(
        input_variances=variances,
        weights=torch.ones(16, dtype=DOUBLE),
        noise=1.0,
        num_examples=2000,
        generator=seeded(0),
    )
    wanted = at_start(synthetic, "dataset")
    found = measure_noise(synthetic.problem, hessian=True, hessian_examples=2000).curvature
    plain = math.sqrt(2 / 32)  # relative, of 32 squares of one normal variable
    assert found.covariance_trace.stderr < 0.05 * plain * wanted["trace"]
    assert found.covariance_trace.value == pytest.approx(wanted["trace"], rel=0.02)


@pytest.mark.parametrize("population", ["dataset", "distribution"])
def test_without_the_graphs_probes_are_taken_with_a_quarter_of_the_hessian(population, monkeypatch):
    """As of a model too large for them: a fraction of the products, the same truth."""
    synthetic = regression(2, 2000)
    wanted = at_start(synthetic, population)
    options = {"population": population, "hessian": True, "seed": 3}
    whole = measure_noise(synthetic.problem, **options)
    monkeypatch.setattr(products, "KEPT_BYTES", 0)
    found = measure_noise(synthetic.problem, **options)
    assert found.curvature.num_matvecs < 0.4 * whole.curvature.num_matvecs
    for name in ("trace", "curvature", "full"):
        estimate, of_whole = estimates(found)[name], estimates(whole)[name]
        assert abs(estimate.value - wanted[name]) < 4 * estimate.stderr
        # in 12 dimensions 10 eigenvectors of all examples leave the probes next to nothing to tell
        assert estimate.stderr < max(2 * of_whole.stderr, 0.08 * wanted[name])


@pytest.mark.statistical
@pytest.mark.slow
def test_the_hessian_is_independent_of_the_gradients():
    """Fresh data with few examples: with the same ones for both GᵀHG comes out too large."""
    wanted = at_start(regression(0, 10), "distribution")
    ratios = [
        measure_noise(
            regression(seed, 80).problem,
            population="distribution",
            hessian=True,
            hessian_examples=40,
            num_probes=8,
            generator=seeded(seed),
        ).curvature.values[1:]
        / np.array([wanted["trace"], wanted["curvature"]])
        for seed in range(150)
    ]
    mean, stderr = np.mean(ratios, 0), np.std(ratios, 0) / math.sqrt(150)
    assert (np.abs(mean - 1) < 4 * stderr).all(), (mean, stderr)
    assert (stderr < 0.06).all()


def test_both_samples_have_their_part_in_the_error():
    problem = regression(0, 400).problem
    whole = measure_noise(problem, hessian=True, hessian_examples=400).curvature.covariance_trace
    part = measure_noise(problem, hessian=True, hessian_examples=40).curvature.covariance_trace
    assert part.stderr > 5 * whole.stderr
    fewer = measure_noise(problem, num_examples=100, hessian=True, hessian_examples=400)
    assert fewer.curvature.covariance_trace.stderr > 5 * whole.stderr


def test_a_model_that_hooks_do_not_fit_has_its_probes_by_vmap_too():
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 3))

        def forward(self, inputs):
            return torch.einsum("bi,io->bo", inputs, self.weight)

    problem = classification(Product(), num_examples=9)
    options = {"hessian": True, "hessian_examples": 9, "num_probes": 2, "chunk_size": 9}
    found, by_vmap = (
        measure_noise(problem, engine=engine, **options) for engine in ("auto", "vmap")
    )
    assert found.engine == "vmap"
    for name in ("values", "covariance"):
        np.testing.assert_allclose(getattr(found.curvature, name), getattr(by_vmap.curvature, name))


@pytest.mark.parametrize("population", ["dataset", "distribution"])
def test_unused_examples_serve_for_the_hessian_first(population):
    found = measure_noise(
        regression(0, 400).problem,
        population=population,
        num_examples=150,
        hessian=True,
        hessian_examples=200,
    )
    assert found.curvature.num_examples == 150
    assert found.curvature.hessian_examples == 200
    assert found.curvature.values[0] == pytest.approx(found.squared_gradient_norm.value)


def test_a_saddle_reports_both_signs_and_no_learning_rate():
    hessian = torch.diag(torch.tensor([1.0, -6.0, 0.5], dtype=DOUBLE))
    problem = quadratic(num_examples=400).problem
    problem.model.hessian.copy_(hessian)
    found = measure_noise(problem, hessian=True)
    assert found.curvature.gradient_curvature.high < 0
    record = found.to_dict()
    assert record["full"]["value"] is None
    assert record["max_learning_rate"]["value"] is None


def test_layers_and_classes_are_the_measurements_of_their_parts():
    problem = classification(num_examples=60)
    found = measure_noise(problem, per_layer=True, per_class=True)
    layers = found.per_layer
    assert list(layers["parameter"]) == [name for name, _ in problem.model.named_parameters()]
    assert layers["squared_gradient_norm"].sum() == pytest.approx(found.squared_gradient_norm.value)
    assert layers["gradient_variance"].sum() == pytest.approx(found.gradient_variance.value)
    for row in found.per_class.to_dict("records"):
        rows = problem.train.targets == row["class"]
        alone = measure_noise(replace(problem, train=problem.train.part(rows)))
        assert row["num_examples"] == int(rows.sum())
        assert row["simple"] == pytest.approx(alone.simple.value)
    part = measure_noise(problem, per_class=True, num_examples=40)
    assert part.per_class["simple_stderr"].dropna().gt(0).all()
    with pytest.raises(SettingError, match="the targets are no classes"):
        measure_noise(regression(0, 20).problem, per_class=True)


def test_a_class_with_one_example_is_left_out_and_named():
    problem = classification(num_examples=60)
    targets = problem.train.targets.clone()
    targets[targets == 2] = 1
    targets[7] = 2
    found = measure_noise(
        replace(problem, train=Examples(problem.train.inputs, targets)), per_class=True
    )
    assert found.per_class["class"].tolist() == [0, 1]
    assert found.notes == ("classes with fewer than 2 examples are left out: 2",)


def test_equal_gradients_are_said_to_leave_nothing_but_rounding():
    problem = classification(num_examples=60)
    same = Examples(problem.train.inputs[:1].expand(60, 6), problem.train.targets[:1].expand(60))
    assert "nearly one" in measure_noise(replace(problem, train=same)).notes[0]
    assert measure_noise(problem).notes == ()


def test_the_noisiest_examples_are_those_farthest_from_the_mean():
    problem = classification(num_examples=60)
    inputs = problem.train.inputs.clone()
    inputs[41] *= 30
    targets = problem.train.targets.clone()
    targets[41] = (targets[41] + 1) % 3
    found = measure_noise(replace(problem, train=Examples(inputs, targets)))
    first = found.top_examples.iloc[0]
    assert first["index"] == 41
    assert first["target"] == targets[41]
    assert found.top_examples["share"].is_monotonic_decreasing
    assert 0.25 < first["share"] < 1


@pytest.mark.parametrize("name", ["residual", "transformer", "signals"])
def test_any_model_can_be_measured_whole(name):
    problem = replace(PROBLEMS[name](), test=PROBLEMS[name]().train)
    found = measure_noise(problem, hessian=True, hessian_examples=4, per_layer=True)
    assert found.population == "dataset"
    assert measure_noise(problem, split="test").population == "distribution"
    json.dumps(found.to_dict(), allow_nan=False)
    assert found.curvature.hessian_examples == 4


def test_results_do_not_depend_on_engine_seeded_order_or_loss_scale():
    problem = classification(num_examples=60)
    found = measure_noise(problem, num_examples=30, generator=seeded(1))
    assert measure_noise(problem, num_examples=30, generator=seeded(1)).simple == found.simple
    assert measure_noise(problem, num_examples=30, generator=seeded(2)).simple != found.simple
    by_vmap = measure_noise(
        problem, num_examples=30, generator=seeded(1), engine="vmap", per_layer=True
    )
    assert by_vmap.simple.high == pytest.approx(found.simple.high, rel=1e-9)
    assert "no errors per layer" in by_vmap.notes[0]
    scaled = replace(problem, loss=lambda outputs, targets: 7 * problem.loss(outputs, targets))
    rescaled = measure_noise(scaled, num_examples=30, generator=seeded(1)).simple
    assert rescaled.low == pytest.approx(found.simple.low)
    order = torch.randperm(60, generator=seeded(4))
    shuffled = measure_noise(replace(problem, train=problem.train.part(order)))
    assert shuffled.simple.value == pytest.approx(measure_noise(problem).simple.value, rel=1e-12)


def test_more_examples_than_there_are_for_the_hessian_are_refused():
    problem = classification(num_examples=60)
    for options, message in (
        ({"hessian_examples": 61}, "hessian examples 61: the train split has 60; give 2 to 60"),
        (
            {"hessian_examples": 58, "population": "distribution"},
            "give 2 to 56, which leaves 4 others",
        ),
        ({"num_probes": 1}, "num probes 1"),
        ({"num_examples": 3}, "3 examples: B_noise takes at least 4"),
        ({"population": "both"}, "population 'both'"),
    ):
        with pytest.raises(SettingError, match=message):
            measure_noise(problem, hessian=True, **options)
    linear = nn.Sequential(nn.Linear(6, 1), nn.Flatten(0)).double()
    flat = replace(problem, model=linear, loss=lambda outputs, targets: outputs)
    with pytest.raises(MeasurementError, match="no second derivative"):
        measure_noise(flat, hessian=True)


def test_options_are_the_keywords_and_each_is_given_once():
    problem = classification(num_examples=60)
    by_keywords = measure_noise(problem, num_examples=30, per_layer=True, generator=seeded(1))
    options = NoiseOptions(num_examples=30, per_layer=True)
    assert_same_record(by_keywords, measure_noise(problem, None, options, seed=1))
    both = measure_noise(problem, None, NoiseOptions(num_examples=30), per_layer=True, seed=1)
    assert_same_record(by_keywords, both)
    with pytest.raises(SettingError, match=r"num_examples: given in the options and beside them"):
        measure_noise(problem, None, options, num_examples=30)
    with pytest.raises(SettingError, match="seed 1 beside a generator"):
        measure_noise(problem, seed=1, generator=seeded(1))
    for given in (None, options):
        with pytest.raises(TypeError, match="unexpected keyword argument 'examples'"):
            measure_noise(problem, None, given, examples=30)


def assert_same_record(one, other):
    assert json.dumps(one.to_dict()) == json.dumps(other.to_dict())
