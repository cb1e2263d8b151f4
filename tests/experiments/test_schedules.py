"""A language model's runs at a constant rate and with a decay at the end, and what they say."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from analysis.noise import schedules as analysis
from experiments.noise import schedules
from experiments.runs import carry_out
from noisescale import ProblemConfig, build_problem
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.records.folder import SUMMARY, read_json
from noisescale.training.trainer import Training
from paper_figures.__main__ import FIGURES

TEXT = ProblemConfig(dataset="markov", model="gpt", width=8, depth=1, heads=1, context=8)


def test_a_decay_is_the_end_of_the_run_that_has_it_from_its_start(tmp_path):
    (units,) = schedules.units("quick", tmp_path)
    course = partial(schedules.course, lengths=(320, 640))
    training = replace(units[0].training, max_steps=20, warmup=3)
    unit = replace(units[0], problem=TEXT, training=training, course=course)
    carry_out(unit, tmp_path / "run")
    rows = read_json(tmp_path / "run" / SUMMARY)["rows"]
    expected = []
    for schedule, steps in (("constant", 10), ("constant", 20), ("wsd", 10), ("wsd", 20)):
        config = replace(training, max_steps=steps, lr_schedule=schedule)
        problem = build_problem(TEXT, seed=training.seed)
        run, curve = Training(problem, config), LossCurve(problem)
        for _ in run:
            pass
        expected.append((schedule, 32 * steps, steps, curve.look(steps, run.model)))
    assert [tuple(row.values()) for row in rows] == [
        (*which, pytest.approx(loss, rel=1e-6)) for *which, loss in expected
    ]
    assert len({row["loss"] for row in rows}) == 4  # the decay makes a difference


def test_each_run_ends_at_every_length_after_its_warm_up():
    (units,) = schedules.units("full", None)
    assert len({unit.folder for unit in units}) == len(units) == 7 * 6 * 3
    for unit in units:
        size = unit.training.batch_size
        assert unit.training.max_steps * size == max(schedules.LENGTHS)
        shortest = min(schedules.LENGTHS) // size
        assert unit.training.warmup < (1 - schedules.DECAY_SHARE) * shortest


def runs(critical):
    """Losses that fall by log(E/E_min)/10 once E > 1 + B/B_crit, as `critical` has it, of 3 seeds.

    At the rate that is best; at half and twice it as those of a quarter fewer examples.
    """
    made = []
    for seed in range(3):
        for size in (2, 8, 32, 128):
            for times in (0.5, 1.0, 2.0):
                rows = []
                for schedule, value in critical.items():
                    for length in (1024, 2048, 4096, 8192, 16384, 65536):
                        seen = length / (1 if times == 1 else 4 / 3) * math.exp(0.01 * seed)
                        loss = 2.55 - 0.1 * math.log(seen / 1024 / (1 + size / value))
                        rows.append({"schedule": schedule, "length": length, "loss": loss})
                        rows[-1]["steps"] = length // size
                record = {"batch_size": size, "learning_rate": times * size**0.5, "seed": seed}
                made.append((Path(f"{size}-{times}-{seed}"), record | {"rows": rows}))
    return made


@pytest.fixture(scope="module")
def tables():
    return analysis.tables(runs({"constant": 20.0, "wsd": 40.0}))


def test_critical_batch_sizes_of_either_schedule_are_those_put_in(tables):
    fits = tables["fits"].set_index(["front", "goal"])
    for front, critical in (("constant", 20), ("wsd", 40)):
        found = fits.loc[front]
        assert found.loc[[2.5, 2.4, 2.3], "critical_batch_size"].to_numpy() == pytest.approx(
            critical, rel=1e-3
        )
        assert found.loc[2.4, "min_examples"] == pytest.approx(1024 * math.exp(1.5), rel=0.02)
    ratios = tables["ratios"].query("quantity == 'critical_batch_size' and goal > 2.2")
    assert ratios["front"].tolist() == ["wsd"] * 3
    assert ratios["log_ratio"].to_numpy() == pytest.approx(math.log(2), abs=1e-3)


def test_a_goal_that_the_shortest_run_has_reached_is_left_out():
    made = runs({"constant": 20.0, "wsd": 40.0})
    made[0][1]["rows"][0]["loss"] = 2.45
    goals = analysis.steps_table(analysis.losses_table(made))["goal"].unique()
    assert goals.tolist() == [2.4, 2.3]


def test_what_is_not_reached_and_what_is_not_finite_are_told(tables):
    made = runs({"constant": 20.0})
    for row in made[0][1]["rows"][:2]:
        row["loss"] = None
    for row in made[1][1]["rows"]:
        row["loss"] = None
    steps = analysis.steps_table(analysis.losses_table(made))
    dead = steps[steps["learning_rate"] == 2**0.5].query("batch_size == 2 and seed == 0")
    assert dead["censored"].all()
    assert dead["diverged"].all()
    late = steps.query("batch_size == 128 and seed == 0 and goal == 2.3")
    assert late["censored"].all()
    assert (late["steps"] == 65536 / 128).all()
    once = steps.query(
        "batch_size == 2 and seed == 0 and learning_rate == .5*2**.5 and goal == 2.5"
    )
    assert once["steps"].item() == 4096 / 2  # after a loss that is not finite: where it is seen


def test_a_run_that_ends_early_has_diverged_wherever_it_has_no_loss():
    made = runs({"constant": 20.0, "wsd": 40.0})
    rows = made[0][1]["rows"]
    made[0][1]["rows"] = [row for row in rows if row["length"] < 4096]
    made[1][1]["rows"] = []
    losses = analysis.losses_table(made)
    assert len(losses) == len(made) * 2 * 6
    steps = analysis.steps_table(losses).query("batch_size == 2 and seed == 0")
    for rate in (0.5 * 2**0.5, 2**0.5):
        assert steps[steps["learning_rate"] == rate]["diverged"].all()
        assert steps[steps["learning_rate"] == rate].query("goal == 2.3")["censored"].all()
    assert not steps[steps["learning_rate"] == 2 * 2**0.5]["diverged"].any()


def test_tables_become_a_picture(tables, tmp_path):
    (tmp_path / "schedules").mkdir()
    for name, rows in tables.items():
        rows.to_csv(tmp_path / "schedules" / f"{name}.csv", index=False, na_rep="nan")
    drawn = FIGURES["schedules"](tmp_path)
    drawn.savefig(tmp_path / "schedules.png", dpi=150)
    assert all(axes.has_data() for axes in drawn.axes)
