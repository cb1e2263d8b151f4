"""The measurement of one checkpoint as one record."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from noisescale.errors import SettingError
from noisescale.measure.curvature.products import hessian_matvec
from noisescale.measure.sharpness import SharpnessOptions, measure_sharpness
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.problems.problem import Problem
from noisescale.problems.sampling import select
from noisescale.problems.synthetic import linear_regression
from tests.helpers.coverage import fewest_hits
from tests.helpers.problems import classification, regression, seeded

EVERYTHING = SharpnessOptions(
    top=2,
    bottom=1,
    trace=True,
    density=True,
    phi=True,
    batch_size=5,
    num_batches=8,
    dtype=torch.float64,
)


def test_everything_asked_for_is_measured_and_is_strict_json():
    problem = classification()
    found = measure_sharpness(problem, options=EVERYTHING)
    matrix = torch.stack(
        [hessian_matvec(problem)(unit) for unit in torch.eye(83, dtype=torch.float64)]
    )
    values = torch.linalg.eigvalsh(matrix)
    largest, second, smallest = found.eigenvalues
    assert [one.which for one in found.eigenvalues] == ["largest", "largest", "smallest"]
    assert largest.value.value == pytest.approx(values[-1].item(), rel=1e-5)
    assert second.value.value == pytest.approx(values[-2].item(), rel=1e-5)
    assert smallest.value.value == pytest.approx(values[0].item(), rel=1e-5)
    assert largest.value.stderr == 0  # all examples: exact
    assert found.moments.trace.low < matrix.trace().item() < found.moments.trace.high
    assert [(phi.space, phi.epsilon) for phi in found.phi] == [
        ("full", 1e-3),
        ("full", 5e-4),
        ("random", 1e-3),
        ("random", 5e-4),
    ]
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["eigenvalues"][0].keys() >= {"which", "value", "residual", "converged"}
    for name in ("trace", "frobenius", "batch_sharpness", "gradient_noise_interaction"):
        assert content[name].keys() == {"value", "stderr", "low", "high"}
    assert content["phi"][0].keys() >= {"space", "epsilon", "value", "iterations"}
    assert np.trapezoid(content["density"]["density"], content["density"]["grid"]) == pytest.approx(
        1, abs=0.01
    )


def test_what_is_not_asked_for_is_absent():
    found = measure_sharpness(classification(), options=SharpnessOptions(top=0))
    assert found.eigenvalues == ()
    assert found.largest is None
    content = found.to_dict()
    absent = (
        "trace",
        "frobenius",
        "batch_sharpness",
        "gradient_noise_interaction",
        "density",
        "batch_size",
    )
    assert all(content[name] is None for name in absent)
    assert content["phi"] == []
    assert found.num_matvecs == 0


def test_the_gauss_newton_matrix_replaces_the_hessian():
    found = measure_sharpness(classification(), options=SharpnessOptions(ggn=True, bottom=1))
    assert found.matrix == "ggn"
    assert found.eigenvalues[-1].value.value > -1e-6


@pytest.mark.parametrize(
    ("draws", "fewest"),
    [(60, fewest_hits(60)), pytest.param(200, 178, marks=pytest.mark.statistical)],
)
def test_a_subset_covers_the_whole_within_its_error(draws, fewest):
    """95 % intervals over random subsets, two thirds of the whole, so that √(1 − n/N) matters."""
    problem = regression(num_examples=3000).problem
    inputs = problem.train.inputs
    truth = torch.linalg.eigvalsh(inputs.T @ inputs / 3000)[-1].item()
    found = [
        measure_sharpness(
            problem, options=SharpnessOptions(num_examples=2000, seed=seed)
        ).largest.value
        for seed in range(draws)
    ]
    assert sum(one.low <= truth <= one.high for one in found) >= fewest
    spread = np.std([one.value for one in found])
    assert np.mean([one.stderr for one in found]) == pytest.approx(spread, rel=0.25)


@pytest.mark.parametrize(
    ("draws", "fewest"),
    [(60, fewest_hits(60)), pytest.param(400, fewest_hits(400), marks=pytest.mark.statistical)],
)
def test_a_top_that_is_not_isolated_is_covered_too(draws, fewest):
    """Equal variances: the subset's own λ_max is 15 % too large, and its interval misses it."""
    problem = linear_regression(
        input_variances=torch.ones(5, dtype=torch.float64),
        weights=torch.zeros(5, dtype=torch.float64),
        noise=1.0,
        num_examples=8000,
        generator=seeded(0),
    ).problem
    inputs = problem.train.inputs
    truth = torch.linalg.eigvalsh(inputs.T @ inputs / 8000)[-1].item()
    found = [
        measure_sharpness(problem, options=SharpnessOptions(num_examples=300, seed=seed))
        for seed in range(draws)
    ]
    values = [one.largest.value for one in found]
    assert sum(one.low <= truth <= one.high for one in values) >= fewest
    own = [float(one.pairs["largest"].values[0]) for one in found]
    assert np.mean(own) > 1.1 * truth
    assert np.mean([one.value for one in values]) == pytest.approx(truth, rel=0.08)


def test_the_smallest_eigenvalue_errs_to_the_other_side():
    """The same matrix with its sign changed, as a dense one: λ_min is minus its λ_max."""
    problem = classification(num_examples=200)
    mirrored = replace(problem, loss=lambda outputs, targets: -problem.loss(outputs, targets))
    options = SharpnessOptions(num_examples=60, rtol=1e-8)
    largest = measure_sharpness(problem, options=options).largest.value
    (smallest,) = measure_sharpness(mirrored, options=replace(options, top=0, bottom=1)).eigenvalues
    assert smallest.value.value == pytest.approx(-largest.value)
    assert smallest.value.low == pytest.approx(-largest.high)
    assert smallest.value.high == pytest.approx(-largest.low)


def test_an_eigenvalue_lies_between_the_subsets_own_and_that_along_the_other_halfs_vectors():
    problem = classification(nn.Linear(6, 3), num_examples=200)
    options = SharpnessOptions(num_examples=64, rtol=1e-10)
    found = measure_sharpness(problem, options=options)
    examples = select(problem, num_examples=64, generator=seeded(0)).examples

    def dense(rows):
        part = Problem(model=problem.model, loss=problem.loss, train=examples.part(rows))
        columns = [hessian_matvec(part)(unit) for unit in torch.eye(21, dtype=torch.float64)]
        return torch.stack(columns)

    halves = [dense(slice(0, 32)), dense(slice(32, 64))]
    vectors = [torch.linalg.eigh(half).eigenvectors[:, -1] for half in halves]
    held_out = (vectors[0] @ halves[1] @ vectors[0] + vectors[1] @ halves[0] @ vectors[1]) / 2
    values, own_vectors = torch.linalg.eigh(dense(slice(0, 64)))
    own, along = values[-1], own_vectors[:, -1]
    inner = own - (1 - 64 / 200) * (own - held_out)
    assert found.largest.value.value == pytest.approx(float(own + inner) / 2, rel=1e-6)
    groups = torch.stack(
        [along @ dense(slice(start, start + 4)) @ along for start in range(0, 64, 4)]
    )
    half = stats.t.ppf(0.975, 15) * (groups.std() * ((1 - 64 / 200) / 16) ** 0.5) / own
    assert (groups > 0).all()
    assert found.largest.value.high == pytest.approx(float(own * half.exp()), rel=1e-6)
    assert found.largest.value.low == pytest.approx(float(inner / half.exp()), rel=1e-6)


def test_a_warm_start_takes_fewer_products():
    problem = build_problem(ProblemConfig(dataset="digits", width=32))
    cold = measure_sharpness(problem)
    nearby = {name: param * 1.002 for name, param in problem.model.named_parameters()}
    warm = measure_sharpness(problem, nearby, start=cold)
    assert warm.num_matvecs < 0.8 * measure_sharpness(problem, nearby).num_matvecs


def test_a_subset_is_random_seeded_and_without_repeats():
    problem = classification()
    examples, _, population = select(problem, num_examples=20, generator=seeded(1))
    assert population == 50
    rows = {tuple(row.tolist()) for row in examples.inputs}
    assert len(rows) == 20
    assert not torch.equal(examples.inputs, problem.train.inputs[:20])
    assert torch.equal(
        select(problem, num_examples=20, generator=seeded(1)).examples.inputs, examples.inputs
    )
    assert not torch.equal(
        select(problem, num_examples=20, generator=seeded(2)).examples.inputs, examples.inputs
    )


def test_impossible_measurements_are_refused():
    problem = classification()
    for options, message in (
        ({"split": "valid"}, "split 'valid': this problem has train, test"),
        ({"split": "validation"}, "split 'validation': this problem has train, test"),
        ({"num_examples": 51}, "num examples 51: the train split has 50"),
        ({"top": 84}, "top 84: the model has P = 83 parameters"),
        ({"bottom": -1}, "bottom -1"),
        ({"batch_size": 51}, "batch size 51"),
    ):
        with pytest.raises(SettingError, match=message):
            measure_sharpness(problem, options=replace(SharpnessOptions(), **options))


def test_a_seed_beside_the_options_is_that_of_the_options():
    problem = classification()
    options = SharpnessOptions(num_examples=20)
    seeded_options = measure_sharpness(problem, None, replace(options, seed=3))
    assert measure_sharpness(problem, None, options, seed=3).loss == seeded_options.loss
    both = measure_sharpness(problem, None, replace(options, seed=3), seed=3)
    assert both.loss == seeded_options.loss != measure_sharpness(problem, None, options).loss
    with pytest.raises(SettingError, match="seed 0: the options have seed 3"):
        measure_sharpness(problem, None, replace(options, seed=3), seed=0)


def test_the_report_counts_the_products():
    said = []
    options = replace(EVERYTHING, ggn=True, phi=False, interaction_batches=3)
    found = measure_sharpness(classification(), options=options, report=said.append)
    products = [activity for activity in said if "(product" in activity]
    assert said[:2] == ["loss and gradient", "largest eigenvalue (product 1)"]
    assert products[-1] == f"density (product {found.num_matvecs})"
    assert len(products) == found.num_matvecs
