"""The experiments on the noise's composition: their grids, and each course in small, on digits."""

import itertools
import json
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from experiments.composition import (
    adam,
    anatomy,
    equal_loss,
    heterogeneity,
    importance,
    model_size,
    temperature,
)
from experiments.runs import Unit, carry_out, unit_experiment
from noisescale.measure.noise import measure_noise
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.problems.problem import Examples
from noisescale.studies.critical_batch.config import CriticalBatchConfig
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.config import TrainConfig
from noisescale.training.trainer import Training

DIGITS = ProblemConfig(dataset="digits", num_train=300, width=8)
PLAN = TrainConfig(batch_size=20, learning_rate=0.1, epochs=20)


def carried_out(course, path, *, problem=DIGITS, training=PLAN):
    """The summary of a course on the digits."""
    carry_out(Unit(folder=path.name, problem=problem, training=training, course=course), path)
    return json.loads((path / "summary.json").read_text())


def test_looks_grow_apart_and_hold_the_steps_asked_for():
    training = Training(build_problem(DIGITS), PLAN)
    curve = LossCurve(training.problem)
    steps = [step for step, _ in equal_loss.sparse_looks(training, curve, besides=(101, 203))]
    assert steps[:33] == list(range(33))
    assert {101, 203, 300} < set(steps)  # 300 is the end
    gaps = [(later - step, step) for step, later in itertools.pairwise(steps) if step >= 32]
    assert all(gap <= step // 16 for gap, step in gaps)
    assert len(steps) < 85


def test_a_look_s_subset_follows_from_seed_and_step(monkeypatch):
    training = Training(build_problem(DIGITS), PLAN)
    first, again = (equal_loss.noise_at(training, num_examples=50) for _ in range(2))
    assert first == again
    whole = equal_loss.noise_at(training, num_examples=5000)
    exact = measure_noise(training.problem)
    assert whole["gradient_variance"] == pytest.approx(exact.gradient_variance.value, rel=1e-5)
    next(iter(training))
    problem = replace(training.problem, model=training.model)
    later = equal_loss.noise_at(training, num_examples=50)
    at_first_subset = measure_noise(
        problem, num_examples=50, seed=equal_loss.independent_seed("noise", 0, 0)
    )
    assert later["gradient_variance"] != pytest.approx(
        at_first_subset.gradient_variance.value, rel=1e-3
    )


def test_networks_are_measured_near_each_loss(tmp_path, monkeypatch):
    monkeypatch.setattr(model_size, "HESSIAN_EXAMPLES", 60)
    course = partial(model_size.course, goals=(2.0, 1.0))
    summary = carried_out(course, tmp_path / "run")
    rows = summary["rows"]
    assert {row["goal"] for row in rows} == {2.0, 1.0}
    assert all(abs(row["loss"] / row["goal"] - 1) <= 0.1 for row in rows)
    for row in rows:
        is_nearest = abs(row["loss"] / row["goal"] - 1) <= 0.04
        assert ("hessian_covariance_trace" in row) == is_nearest
    assert len(rows) > 4
    assert summary["num_parameters"] == 64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10
    assert summary["steps"] < 300  # it ends below the lowest


def test_every_network_of_a_seed_is_there_once():
    at_full, at_half = model_size.units("full", None)
    assert len(at_full) == 5 * (8 + 9)
    assert len(at_half) == 3 * 7
    assert len({unit.folder for unit in [*at_full, *at_half]}) == len(at_full) + len(at_half)
    assert {unit.problem.depth for unit in at_half} == {2}
    sizes = {(unit.problem.width, unit.problem.depth) for unit in at_full}
    assert (1024, 2) in sizes
    assert (256, 4) in sizes


def test_all_pairs_of_a_seed_have_orders_by_batch_size(tmp_path):
    (units,) = temperature.units("full", None)
    assert len(units) == len({unit.folder for unit in units}) == 5 * 16
    orders = {(unit.training.seed, unit.training.batch_size): unit.training for unit in units}
    assert len({training.order_seed for training in orders.values()}) == 5 * 4
    course = partial(temperature.course, goals=(2.0,))
    assert {row["goal"] for row in carried_out(course, tmp_path / "run")["rows"]} == {2.0}


def test_wrong_labels_are_measured_at_steps_and_at_equal_loss(tmp_path):
    (units,) = heterogeneity.units("full", None)
    assert len(units) == len({unit.folder for unit in units}) == 5 * (6 + 5 + 2)
    assert {unit.problem.imbalance for unit in units} == {1.0, 10.0, 100.0}
    problem = replace(DIGITS, classes=3, label_noise=0.2)
    course = partial(heterogeneity.course, classes=3, steps=(0, 7, 40))
    plan = replace(PLAN, max_steps=40)
    summary = carried_out(course, tmp_path / "run", problem=problem, training=plan)
    points = {row["point"]: row for row in summary["rows"]}
    assert set(points) == {"step 0", "step 7", "step 40", "equal loss"}
    assert points["step 40"]["step"] == 40
    for row in summary["rows"]:
        if row["point"] == "equal loss":
            assert abs(row["validation_loss"] / (0.52 * math.log(3)) - 1) <= 0.1
    built = build_problem(problem, seed=0)
    exact = measure_noise(built).squared_gradient_norm.value
    assert points["step 0"]["squared_gradient_norm"] == pytest.approx(exact, rel=1e-5)
    assert "mixture" not in summary
    clean = carried_out(
        partial(heterogeneity.course, classes=3, steps=(0,), shares=(0.2, 0.4)),
        tmp_path / "clean",
        problem=replace(DIGITS, classes=3),
        training=replace(PLAN, max_steps=1),
    )
    # the same images, a third of whose labels are each class in turn
    problem = build_problem(replace(DIGITS, classes=3), seed=0)
    inputs = problem.train.inputs.repeat(3, 1, 1, 1)
    labels = torch.arange(3).repeat_interleave(problem.train.num_examples)
    even = measure_noise(replace(problem, train=Examples(inputs, labels)))
    found = clean["mixture"]
    assert found["even_even"] == pytest.approx(even.squared_gradient_norm.value, rel=1e-5)
    squares = even.gradient_variance.value + even.squared_gradient_norm.value
    assert found["even_squares"] == pytest.approx(squares, rel=1e-5)
    right = measure_noise(problem)
    assert found["clean_clean"] == pytest.approx(right.squared_gradient_norm.value, rel=1e-5)
    bound = math.sqrt(found["clean_clean"] * found["even_even"])
    assert abs(found["clean_even"]) <= bound
    # wrong labels are the seed's own, about the law
    assert [row["label_noise"] for row in clean["redrawn"]] == [0.2, 0.4]
    for row in clean["redrawn"]:
        q = row["label_noise"] * 3 / 2
        law = (1 - q) ** 2 * found["clean_clean"] + q**2 * found["even_even"]
        law += 2 * q * (1 - q) * found["clean_even"]
        assert row["squared_gradient_norm"] == pytest.approx(law, rel=0.2)
    assert clean["redrawn"][0]["squared_gradient_norm"] != pytest.approx(exact, rel=1e-4)


def test_numbers_of_images_are_multiples_of_the_batch_sizes():
    for experiment in (model_size, heterogeneity, anatomy, temperature):
        for unit in itertools.chain(*experiment.units("full", None)):
            number = unit.problem.num_train
            if getattr(unit.problem, "imbalance", 1.0) == 1:
                assert number % unit.training.batch_size == 0, unit.folder
    for experiment in (model_size, heterogeneity, importance, adam):
        for front in experiment.fronts("full").values():
            assert all(front.problem.num_train % size == 0 for size in front.batch_sizes)


@pytest.mark.parametrize(("classes", "share"), [(10, 0.3), (2, 0.25)])
def test_the_law_of_wrong_labels_holds_where_outputs_are_equal(classes, share):
    """Of a linear model without weights, whose softmax is 1/C exactly; so on every label drawn."""
    found = []
    for noise in (0.0, share):
        config = ProblemConfig(dataset="digits", classes=classes, label_noise=noise, width=8)
        problem = build_problem(config)
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, classes))
        for param in model.parameters():
            torch.nn.init.zeros_(param)
        found.append(measure_noise(replace(problem, model=model, config=None)).simple.value)
    evenly = share * classes / (classes - 1)
    predicted = (found[0] + 1) / (1 - evenly) ** 2 - 1
    assert found[1] == pytest.approx(predicted, rel=0.15)  # which labels are wrong is a draw


def test_deletion_is_of_the_noisiest_or_of_as_many(tmp_path):
    course = partial(anatomy.course, goals=(2.0, 1.0))
    summary = carried_out(course, tmp_path / "run")
    points = summary["points"]
    assert list(dict.fromkeys(point["goal"] for point in points)) == [None, 2.0, 1.0]
    assert len(points) > 5  # several looks near each loss
    assert all(abs(point["loss"] / point["goal"] - 1) <= 0.1 for point in points[1:])
    start = points[0]
    problem = build_problem(DIGITS)
    # the mean of deviations about the old mean, over those left: an upper bound of tr Σ about the
    # new one, which it exceeds by the square of their difference
    noisiest = torch.tensor(start["anatomy"]["noisiest"])
    assert len(noisiest) == 3
    kept = torch.ones(300, dtype=torch.bool)
    kept[noisiest] = False
    expected = measure_noise(replace(problem, train=problem.train.part(kept.nonzero()[:, 0])))
    left = start["without_noisiest"]
    assert left["gradient_variance"] == pytest.approx(expected.gradient_variance.value, rel=1e-5)
    assert left["gradient_variance"] < start["without_random"]["gradient_variance"]
    assert start["top_share"] == pytest.approx(
        1 - left["gradient_variance"] * 297 / (start["gradient_variance"] * 300), rel=0.05
    )


def test_chances_leave_what_an_enumeration_says():
    """Of gradients written out: the covariance of one draw, over that of an even one."""
    generator = torch.Generator().manual_seed(1)
    gradients = 0.2 + torch.randn(9, 4, generator=generator, dtype=torch.float64)
    chances = torch.rand(9, generator=generator, dtype=torch.float64).add(0.1)
    chances /= chances.sum()
    mean = gradients.mean(0)
    weighted = gradients / (9 * chances[:, None])
    expected = float((chances * (weighted - mean).square().sum(1)).sum())
    squares = gradients.square().sum(1).numpy()
    left = importance.variance_left(squares, float(mean @ mean), chances.numpy())
    assert left == pytest.approx(expected)
    even = importance.variance_left(squares, float(mean @ mean), np.full(9, 1 / 9))
    assert even == pytest.approx(float((gradients - mean).square().sum(1).mean()))


def test_the_forecast_is_the_mean_of_what_is_left_by_noise_and_progress():
    simple, batch = 100.0, importance.BATCH_SIZE
    row = {"squared_gradient_norm": 2.0, "gradient_variance": 2 * simple, "best": 0.1}
    rows = [
        {"step": step, "loss": loss, "left": left, **row}
        for step, loss, left in ((0, 2.0, 1.0), (10, 1.0, 0.5), (20, 0.3, 0.5), (90, 0.1, 0.2))
    ]
    assert importance.forecast(rows, 0.2, "best") == pytest.approx(0.1)
    # up to .4 two stretches alike in length: their ends' weights are of steps of this run
    weights = [1 / (1 + left * simple / batch) for left in (1.0, 0.5, 0.5)]
    above = weights[0] * 1.0 + 2 * weights[1] * 0.5 + weights[2] * 0.5
    expected = above / (weights[0] + 2 * weights[1] + weights[2])
    assert importance.forecast(rows, 0.4, "left") == pytest.approx(expected)
    assert math.isnan(importance.forecast(rows, 0.05, "left"))


def test_the_forecast_is_written_before_the_fronts_and_only_once(tmp_path, monkeypatch):
    settings = {"seeds": 2, "num_train": 300, "goals": (2.0, 1.0), "sizes": (4, 16, 64, 256)}
    monkeypatch.setitem(importance.SCALES, "quick", settings)
    monkeypatch.setattr(importance, "PROBLEM", DIGITS)
    steps = importance.units("quick", tmp_path)
    made = next(steps)
    for unit in made:
        carry_out(unit, tmp_path / unit.folder)
    assert not (tmp_path / importance.FORECAST).exists()
    assert next(steps, None) is None
    written = json.loads((tmp_path / importance.FORECAST).read_text())["factors"]
    assert {(row["seed"], row["goal"]) for row in written} == set(
        itertools.product((0, 1), (2.0, 1.0))
    )
    assert all(0 < row["best"] <= row["left"] <= 1.2 for row in written)
    (tmp_path / importance.FORECAST).write_text("{}")
    assert len(list(importance.units("quick", tmp_path))) == 1
    assert (tmp_path / importance.FORECAST).read_text() == "{}"


def test_fronts_are_measured_beside_the_runs(tmp_path):
    command = unit_experiment(
        "small",
        lambda scale, out: iter(()),
        scales={"quick": "one"},
        help="A front.",
        fronts=lambda scale: {
            "one": CriticalBatchConfig(
                problem=DIGITS,
                batch_sizes=(10, 20, 40, 80),
                goals=(2.0,),
                num_seeds=1,
                noise_examples=None,
            )
        },
    )
    result = CliRunner().invoke(command, ["--processes", "1", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "fronts" / "one" / "steps_to_goal.csv").exists()


def test_fronts_differ_in_what_is_compared_alone():
    both = importance.fronts("full")
    evenly, drawn = both["even"], both["importance"]
    assert replace(evenly, training=drawn.training) == drawn
    assert drawn.training.sampling == evenly.training.sampling == "importance"
    assert evenly.training.sampling_floor == 1
    assert min(drawn.batch_sizes) == 16
    assert max(drawn.batch_sizes) == 1024
    shares = [front.problem.label_noise for front in heterogeneity.fronts("full").values()]
    assert shares == [0.0, 0.2, 0.4]
    assert {front.split for front in heterogeneity.fronts("full").values()} == {"test"}
    widths = [front.problem.width for front in model_size.fronts("full").values()]
    assert widths == [16, 64, 256]
    with_epsilon = adam.fronts("full")
    assert {name: front.training.epsilon for name, front in with_epsilon.items()} == {
        "epsilon1e-08": 1e-8,
        "epsilon0.001": 1e-3,
    }
    assert all(len(front.batch_sizes) == 12 for front in with_epsilon.values())
    assert list(adam.units("full", None)) == []
