"""B_crit of tasks not seen, from simulated tasks with a known effect of their own."""

import math

import numpy as np
import pandas as pd
import pytest

from experiments.coverage.new_task import (
    BETWEEN,
    OFFSET,
    TRUE,
    WITHIN,
    dealt,
    holds,
    simulated,
)
from noisescale.statistics.critical_batch.calibration import shipped
from noisescale.statistics.critical_batch.calibration.model import calibration
from noisescale.statistics.critical_batch.calibration.tasks import (
    FEWEST_TASKS,
    TaskModel,
    coverage,
    leave_one_task_out,
    regressors,
)
from noisescale.statistics.critical_batch.recommendation import recommend
from noisescale.statistics.estimate import Estimate, student_t
from noisescale.studies.recommend.optimizer import caveat

NAMES = tuple(TRUE)


def test_the_model_finds_what_was_put_in():
    """Coefficients within four of their errors over 40 tables, whose scatter those errors are."""
    generator = np.random.default_rng(0)
    models = [TaskModel.fitted(simulated(generator), NAMES) for _ in range(40)]
    truth = np.array([OFFSET, *TRUE.values()])
    found = np.array([model.coefficients for model in models])
    errors = np.array([model.errors for model in models])
    assert (np.abs(found.mean(0) - truth) < 4 * errors.mean(0) / math.sqrt(40)).all()
    assert found.std(0, ddof=1) == pytest.approx(errors.mean(0), rel=0.45)  # 4 of 1/√(2·39)
    # less what the errors that a run has in common move its task by
    assert np.mean([model.within for model in models]) == pytest.approx(WITHIN, rel=0.05)
    assert np.mean([model.between for model in models]) == pytest.approx(BETWEEN, rel=0.1)
    # a task's own effect and a row's error, and the coefficients' own
    assert np.mean([model.spread for model in models]) == pytest.approx(
        math.hypot(BETWEEN, WITHIN), rel=0.15
    )


def test_the_fit_is_that_of_dense_matrices():
    """Generalised least squares by the inverse of the whole covariance, at the σ found."""
    table = simulated(np.random.default_rng(1), num_tasks=12, goals=2).iloc[3:]  # unequal tasks
    model = TaskModel.fitted(table, NAMES)
    same = table["task"].to_numpy()[:, None] == table["task"].to_numpy()
    covariance = model.within**2 * np.eye(len(table)) + model.between**2 * same
    x = np.column_stack([np.ones(len(table)), regressors(table)[list(NAMES)]])
    y = np.log(table["critical_batch_size"] / table["noise_scale"])
    weights = np.linalg.inv(covariance)
    inverse = np.linalg.inv(x.T @ weights @ x)
    assert model.coefficients == pytest.approx(inverse @ x.T @ weights @ y)
    squares, without = [], []
    for task in table["task"].unique():
        own = (table["task"] == task).to_numpy()
        others = np.linalg.inv(covariance[np.ix_(~own, ~own)])
        slopes = np.linalg.solve(x[~own].T @ others @ x[~own], x[~own].T @ others @ y[~own])
        squares.append(np.mean((y[own] - x[own] @ slopes) ** 2))
        without.append(slopes - model.coefficients)
    jackknife = (1 - 1 / len(without)) * np.transpose(without) @ np.array(without)
    assert model.covariance == pytest.approx(jackknife)
    assert model.errors == pytest.approx(np.sqrt(np.diag(jackknife)))
    assert model.spread == pytest.approx(math.sqrt(np.mean(squares)))
    held_out = table[table["task"] == "task 5"]
    other = TaskModel.fitted(table[table["task"] != "task 5"], NAMES)
    left_out = leave_one_task_out(table, NAMES).loc[held_out.index]
    known = regressors(held_out).to_dict("records")
    expected = held_out["noise_scale"] * np.exp([other.log_ratio(row) for row in known])
    assert left_out["predicted"].to_numpy() == pytest.approx(expected.to_numpy())
    reach = np.log(left_out["high"] / left_out["predicted"]).to_numpy()
    own = [np.array([1, *(row[name] for name in NAMES)]) for row in known]
    farther = [max(x @ other.covariance @ x - other.leverage, 0) for x in own]
    width = student_t(10, confidence=0.9) * np.sqrt(other.spread**2 + np.array(farther))
    assert reach == pytest.approx(width)


def test_beyond_the_table_a_run_counts_as_at_its_end():
    """And is told so; there the coefficients' errors count for more than among the rows."""
    model = TaskModel.fitted(simulated(np.random.default_rng(7), num_tasks=12), NAMES)
    middle = {
        name: (low + high) / 2
        for name, low, high in zip(model.names, model.lowest, model.highest, strict=True)
    }
    end = middle | {"log_loss": model.lowest[NAMES.index("log_loss")]}
    far = middle | {"log_loss": -20.0}
    assert (model.outside(middle), model.outside(end)) == ([], [])
    assert model.outside(far) == ["log(L/L_0)"]
    assert model.log_ratio(far) == pytest.approx(model.log_ratio(end))
    assert model.log_ratio(end) != pytest.approx(model.log_ratio(middle))
    corner = dict(zip(model.names, model.highest, strict=True))
    assert model.half_width(corner, near=False) > 1.02 * model.half_width(middle, near=False)


def test_a_shuffled_table_fails():
    """The true one's intervals do not hold its fronts; its own have to reach twice as far."""
    generator = np.random.default_rng(3)
    table = simulated(generator)
    left_out = leave_one_task_out(table, NAMES)
    assert 0.85 <= coverage(left_out).value <= 0.95
    other = dealt(left_out, generator)
    assert coverage(other.assign(covered=holds(other))).value < 0.6
    reach = [
        float(np.log(found["high"] / found["predicted"]).median())
        for found in (left_out, leave_one_task_out(dealt(table, generator), NAMES))
    ]
    assert reach[0] < 1.0  # of σ = .45
    assert reach[1] > 2 * reach[0]


def test_the_shipped_table_covers_tasks_left_out_unless_it_is_shuffled():
    rows = pd.read_csv(shipped.FRONTS, comment="#")
    rows = rows[(rows["quantity"] == "simple") & (rows["geometry"] == "plain")]
    names = ("log_rate", "log_batch", "negative_curvature", "log_loss", "momentum", "adaptive")
    left_out = leave_one_task_out(rows, names)
    assert 0.8 <= coverage(left_out).value <= 0.97  # of 28 tasks: 90 % ± 6
    means = left_out.groupby("task")["critical_batch_size"].mean().sort_values()
    far = dict(zip(means.index, np.roll(means, len(means) // 2), strict=True))
    other = left_out.assign(critical_batch_size=left_out["task"].map(far))
    assert coverage(other.assign(covered=holds(other))).value < 0.8


def test_an_optimizer_that_no_other_task_has_is_predicted_without_its_own_term():
    """Left out, its column is all zero: the others' offset stands, and nothing is singular."""
    table = simulated(np.random.default_rng(4), num_tasks=12, goals=2)
    table["optimizer"] = np.where(table["task"] == "task 2", "adaptive", "sgd")
    found = leave_one_task_out(table, NAMES)
    assert np.isfinite(found["predicted"]).all()


@pytest.fixture
def fronts(tmp_path, monkeypatch):
    """A table of fronts in the shipped one's place."""
    path = tmp_path / "fronts.csv"
    monkeypatch.setattr(shipped, "FRONTS", path)
    table = simulated(np.random.default_rng(5))
    path.write_text("# version: 7\n# command: none\n" + table.to_csv(index=False))
    return path


def tracked(simple=100.0):
    """Rows of noise.csv of a run at ε = .1 with this noise scale."""
    table = pd.DataFrame({"step": [0, 10, 100], "batch_size": 32, "simple": simple})
    table = table.assign(num_examples=500, population_size=2000, full=math.nan)
    table = table.assign(loss=[2.0, 1.0, 0.5], squared_gradient_norm=1.0, gradient_variance=simple)
    ends = {"stderr": 0.05 * simple, "low": 0.9 * simple, "high": 1.1 * simple}
    return table.assign(**{f"simple_{name}": value for name, value in ends.items()})


def test_a_table_of_many_tasks_is_used_where_there_is_one(fronts):
    assert shipped.calibrated_on() == "24 tasks"
    assert shipped.version(fronts) == 7
    assert shipped.calibrated_by("plain").startswith("by the fronts of 24 tasks, table 7,")
    assert shipped.calibrated_by("optimizer").startswith("by runs of SGD on MNIST")
    assert caveat("adam", in_geometry=False).endswith("the interval is calibrated on 24 tasks.")
    found = recommend(tracked(), rate_over_best=0.5, optimizer="sgd")
    known = {"log_rate": math.log(0.5), "log_loss": math.log(0.25), "adaptive": 0.0}
    known |= {"log_batch": math.log(32 / 100), "momentum": 0.0}
    assert found.facts.known(100.0) == pytest.approx(known)
    table = pd.read_csv(fronts, comment="#")
    model = TaskModel.fitted(table, ("log_rate", "log_batch", "log_loss", "momentum", "adaptive"))
    critical = found.critical_batch_size
    assert critical.value == pytest.approx(100 * math.exp(model.log_ratio(known)))
    width = math.hypot(model.half_width(known, near=True), math.log(1 / 0.9))
    assert critical.low == pytest.approx(critical.value * math.exp(-width))
    assert critical.num_samples == 24
    # far from the best rate another spread counts, and without a rate another model
    far = recommend(tracked(), rate_over_best=0.1, optimizer="sgd").critical_batch_size
    assert far.value < critical.value
    assert recommend(tracked()).critical_batch_size.value != critical.value


def test_where_too_few_tasks_have_a_noise_scale_the_runs_on_mnist_stand_in(tmp_path, monkeypatch):
    few = simulated(np.random.default_rng(6), num_tasks=FEWEST_TASKS - 1)
    few.to_csv(tmp_path / "few.csv", index=False)
    monkeypatch.setattr(shipped, "FRONTS", tmp_path / "few.csv")
    found = recommend(tracked(), rate_over_best=0.5, optimizer="sgd")
    model = calibration("simple", with_rate=True, regressor="rate_over_best")
    assert found.critical_batch_size == model.critical_batch_size(found.by_progress, 0.5)
    # of another noise scale there is no row at all
    estimate = Estimate(value=50.0, stderr=5.0, low=40.0, high=62.0, num_samples=9)
    facts = shipped.RunFacts(batch_size=32.0)
    assert shipped.critical_batch_size(
        estimate, facts, quantity="full", geometry="optimizer"
    ) == calibration("full", with_rate=False).critical_batch_size(estimate, None)
