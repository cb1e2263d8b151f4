"""The experiments on batch sizes: their grids, and each course in small, on the digits."""

import itertools
import json
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from experiments.batches import batch_cost, bias_variance, sharp_minima, small_batches
from experiments.batches.scores import test_scores as scores_of_all
from experiments.runs import Unit, carry_out
from experiments.stability import catapult
from noisescale.measure.sharpness import SharpnessOptions, measure_sharpness
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.problems.problem import Examples
from noisescale.training import trainer
from noisescale.training.config import TrainConfig

DIGITS = ProblemConfig(dataset="digits", num_train=300, width=8)


def carried_out(course, path, *, problem=DIGITS, **training):
    """The summary of a course on the digits."""
    config = TrainConfig(**{"batch_size": 20, "learning_rate": 0.1, "epochs": 2, **training})
    unit = Unit(folder=path.name, problem=problem, training=config, course=course)
    carry_out(unit, path)
    return json.loads((path / "summary.json").read_text())


def test_small_batches_are_two_grids_with_orders_by_seed_and_size():
    plain, normed = (small_batches.grid(norm, scale="full") for norm in ("none", "batch"))
    assert (len(plain), len(normed)) == (515, 282)
    assert len({unit.folder for unit in [*plain, *normed]}) == 797
    ratios = {unit.training.learning_rate / unit.training.batch_size for unit in plain}
    assert ratios == {2.0**exponent for exponent in range(-14, -3)}
    assert all(unit.problem.num_train % unit.training.batch_size == 0 for unit in plain)
    orders = {}
    for unit in plain:
        key = unit.training.seed, unit.training.batch_size
        orders.setdefault(key, set()).add(unit.training.order_seed)
    assert all(len(found) == 1 for found in orders.values())
    assert len(set.union(*orders.values())) == 55


def test_ghosts_take_the_rate_that_is_best_for_batch_norm(tmp_path):
    batch_norm = small_batches.grid("batch", scale="full")
    for unit in batch_norm:
        if unit.training.batch_size == 64:
            exponent = round(math.log2(unit.training.learning_rate / 64))
            accuracy = {-8: (0.9, 0.9, 0.96), -7: (0.93, 0.93, 0.93)}.get(exponent, (0.5,) * 3)
            (tmp_path / unit.folder).mkdir(parents=True)
            summary = {"renewed_test_accuracy": accuracy[unit.training.seed]}
            (tmp_path / unit.folder / "summary.json").write_text(json.dumps(summary))
    assert small_batches.best_exponent(tmp_path, 64, batch_norm) == -7  # by the mean of seeds
    unit = small_batches.unit("ghost", 64, -7, 0, epochs=1, ghost=8)
    assert (unit.problem.norm, unit.problem.ghost_size) == ("ghost", 8)


def test_scores_are_on_all_held_out_images():
    problem = build_problem(DIGITS)
    parts = problem.validation, problem.test
    inputs, targets = (torch.cat([part[place] for part in parts]) for place in (0, 1))
    with torch.no_grad():
        outputs = problem.model(inputs)
    scores = scores_of_all(problem, problem.model)
    assert scores["num_test"] == 500
    assert scores["test_accuracy"] == int((outputs.argmax(1) == targets).sum()) / 500
    assert scores["test_loss"] == pytest.approx(float(problem.loss(outputs, targets).mean()))


def test_a_small_batch_s_run_says_where_it_diverged(tmp_path):
    kept = carried_out(small_batches.course, tmp_path / "kept")
    assert (kept["steps"], kept["diverged_at_step"]) == (30, None)
    gone = carried_out(small_batches.course, tmp_path / "gone", learning_rate=1e30)
    assert gone["diverged_at_step"] is not None
    assert gone["test_loss"] is None


@pytest.mark.parametrize("every", [None, 1, 10])
def test_batches_have_the_sizes_asked_for(every):
    examples = Examples(torch.arange(1000.0).view(1000, 1), torch.arange(1000))
    expected = list(itertools.islice(batch_cost.sizes_of(every), 12))
    assert len(set(expected)) == (1 if every is None else 2)
    for (source, way), make in batch_cost.sources("cpu").items():
        if "2 workers" in source:  # processes
            continue
        batches = list(itertools.islice(make(examples, every, 0), 12))
        assert [len(targets) for _, targets in batches] == expected, (source, way)
        assert all((inputs[:, 0] == targets).all() for inputs, targets in batches)
        first = torch.cat([targets for _, targets in batches])
        if way != "rebuild":  # a loader that is rebuilt begins the examples anew
            assert len(first.unique()) == len(first)


def test_a_round_times_every_source_and_the_package_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_cost, "WORKERS", (0,))
    for name, value in (("STEPS", 4), ("WARM_UP", 1)):
        monkeypatch.setattr(batch_cost, name, value)
    monkeypatch.setattr(batch_cost, "STEPS_OF_REBUILT", dict.fromkeys(batch_cost.EVERY, 3))
    summary = carried_out(batch_cost.time_changes, tmp_path / "round", epochs=1000)
    found = {(row["source"], row["way"], row["every"]) for row in summary["rows"]}
    assert len(found) == len(summary["rows"]) == 4 * 4
    assert all(row["seconds"] > 0 for row in summary["rows"])


def test_a_full_batch_accumulated_is_the_same_update(tmp_path, monkeypatch):
    """Of float32, and in more than one chunk: a chunk left out would differ by a third."""
    monkeypatch.setattr(trainer, "CHUNK", 100)
    monkeypatch.setattr(batch_cost, "FEWEST_EXAMPLES", 1)
    course = partial(batch_cost.time_full_batches, sizes=(50, 300))
    summary = carried_out(course, tmp_path / "round", epochs=1000)
    rows = {(row["batch_size"], row["way"]): row for row in summary["rows"]}
    assert len(rows) == 4
    assert 0 < rows[300, "accumulated"]["difference"] < 1e-4
    assert rows[300, "one pass"]["difference"] == 0


def test_bootstrap_samples_are_crossed_and_the_same_at_every_size():
    crossed, folds = bias_variance.units("full", None)
    assert (len(crossed), len(folds)) == (3 * 8 * 2 * 2, 3 * 5 * 7)
    drawn = bias_variance.in_bag(3)
    assert len(drawn) == 2000
    assert len(drawn.unique()) == pytest.approx(2000 * (1 - math.exp(-1)), abs=60)
    assert torch.bincount(bias_variance.fold_of()).tolist() == [400] * 5


def test_a_bootstrap_run_ends_at_the_goal_and_stores_probabilities(tmp_path, monkeypatch):
    monkeypatch.setattr(bias_variance, "POOL", 300)
    labels = {"sample": 1, "initialisation": 0, "order": 0}
    course = partial(bias_variance.bootstrap, labels=labels, goal=1.0)
    summary = carried_out(course, tmp_path / "run", epochs=100)
    assert summary["train_loss"] <= 1.0
    assert summary["epochs"] < 100
    stored = np.load(tmp_path / "run" / "predictions.npz")
    assert stored["test"].shape == (500, 10)
    assert stored["pool"].sum(1) == pytest.approx(np.ones(300), abs=1e-5)
    assert stored["in_bag"].sum() == 300
    right = stored["test"].argmax(1) == stored["test_targets"]
    assert summary["test_accuracy"] == pytest.approx(right.mean())


def test_a_fold_scores_what_it_has_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(bias_variance, "POOL", 300)
    labels = {"fold": 2, "factor": 1.0}
    course = partial(bias_variance.fold, labels=labels, goal=0.1)
    summary = carried_out(course, tmp_path / "fold")
    assert summary["num_left_out"] == 60
    assert summary["steps"] == 2 * 240 / 20  # two epochs of the other folds
    whole = partial(bias_variance.fold, labels={"fold": -1, "factor": 1.0}, goal=0.1)
    assert carried_out(whole, tmp_path / "whole")["steps"] == 30


def test_minima_are_measured_at_each_stop_and_the_line_meets_its_ends(tmp_path, monkeypatch):
    settings = {"N": 300, "LOSS": 1.0, "LOOK": 1, "POINTS": 5, "PHI_EXAMPLES": 50}
    for name, value in settings.items():
        monkeypatch.setattr(sharp_minima, name, value)
    monkeypatch.setattr(sharp_minima, "ITERATIONS", (1, 2))
    course = partial(sharp_minima.descend, case="sgd", epochs=2, updates=40)
    ends = []
    for size in (20, 60):
        path = tmp_path / f"bs{size}"
        summary = carried_out(course, path, batch_size=size, learning_rate=0.3, epochs=40)
        states = {state["stop"]: state for state in summary["states"]}
        assert set(states) == {"epochs", "updates", "loss"}
        assert states["epochs"]["step"] == 2 * 300 / size
        assert states["updates"]["step"] == 40
        assert states["loss"]["train_loss"] == pytest.approx(1.0, rel=0.1)
        assert states["loss"]["phi_0.001_2"] >= states["loss"]["phi_0.001_1"] > 0
        ends.append((path, states))
    course = partial(sharp_minima.draw_line, case="sgd", ends=tuple(path for path, _ in ends))
    rows = carried_out(course, tmp_path / "line")["rows"]
    assert len(rows) == 3 * 5
    for row in rows:
        if row["alpha"] in (0.0, 1.0):
            state = ends[int(row["alpha"])][1][row["stop"]]
            assert row["test_loss"] == pytest.approx(state["test_loss"], rel=1e-5)
            assert row["train_accuracy"] == state["train_accuracy"]


def test_the_first_updates_are_watched_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(catapult, "WATCHED", 4)
    summary = carried_out(catapult.watch, tmp_path / "run", max_steps=8)
    rows = summary["rows"]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    options = SharpnessOptions(num_examples=None)
    exact = measure_sharpness(build_problem(DIGITS), options=options).largest.value.value
    assert rows[0]["sharpness"] == pytest.approx(exact, rel=catapult.RTOL)
    assert summary["steps"] == 8
    gone = carried_out(catapult.watch, tmp_path / "gone", learning_rate=1e30, max_steps=8)
    assert gone["rows"][-1]["sharpness"] is None
    assert gone["diverged_at_step"] is not None


def test_the_watched_and_the_stars_lie_around_every_edge():
    watched, stars = catapult.units("full", None)
    assert len(watched) == 3 * 3 * 20
    assert len(stars) == 3 * 16
    assert {unit.problem.width for unit in stars} == {None}
    assert all(unit.problem.pixel_scale == "raw" for unit in [*watched, *stars])


def test_a_dip_is_no_equal_loss(monkeypatch):
    """The median of an epoch's looks is at the goal, and the loss itself near it."""
    training = SimpleNamespace(batch_size=64, problem=None, model=None)
    high, goal, low = 0.03, 0.0105, 0.007
    for losses, reached in (
        ([high] * 40, False),
        ([high] * 39 + [goal], False),  # a dip
        ([high] * 12 + [goal] * 13, True),
        ([high] * 12 + [low] * 13 + [goal], True),
        ([high] * 12 + [goal] * 12 + [low], False),  # the median is there, the loss is not
    ):
        left = iter(losses)
        curve = SimpleNamespace(points=[])

        def look(step, model, curve=curve, left=left):
            curve.points.append((step, next(left)))

        curve.look = look
        monkeypatch.setattr(
            sharp_minima, "train_scores", lambda *_, c=curve: {"train_loss": c.points[-1][1]}
        )
        steps = [sharp_minima.LOOK * (place + 1) for place in range(len(losses))]
        found = [sharp_minima._loss_reached(training, curve, step, []) for step in steps]
        assert found[-1] is reached
        assert not any(found[:-1])
    assert not sharp_minima._loss_reached(training, curve, steps[-1], [{"stop": "loss"}])


@pytest.mark.parametrize(
    ("scale", "given_rates", "tuned_seeds", "num_tuning"),
    [("full", 5 + 5, 5, 10), ("all", 5 + 5 + 3 + 3 + 1, 5 + 3, 20)],
)
def test_minima_at_best_rates_follow_their_tuning(
    scale, given_rates, tuned_seeds, num_tuning, tmp_path
):
    lists = sharp_minima.units(scale, tmp_path)
    given = next(lists)
    assert len(given) == 2 * given_rates  # SGD and Adam, and besides of squared error, and F1
    assert all(sharp_minima.N % unit.training.batch_size == 0 for unit in given)
    tuning = next(lists)
    assert len(tuning) == num_tuning
    for unit in tuning:
        (tmp_path / unit.folder).mkdir(parents=True)
        distance = abs(math.log(unit.training.learning_rate * 64 / unit.training.batch_size))
        summary = {"held_out": 1 / (1 + distance)}
        (tmp_path / unit.folder / "summary.json").write_text(json.dumps(summary))
    tuned = next(lists)
    assert len(tuned) == 2 * tuned_seeds
    assert {unit.training.learning_rate for unit in tuned} == {0.8}  # nearest to B/64 = 1 and 15.6
    lines = next(lists)
    assert len(lines) == given_rates + tuned_seeds
