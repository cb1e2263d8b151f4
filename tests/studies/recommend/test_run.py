"""A recommendation of a problem whose critical batch size is known, by a clock that is not real."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from noisescale.errors import (
    MeasurementError,
    NoisescaleError,
    NoProgressError,
    RunFolderError,
    SettingError,
)
from noisescale.problems.factory import factory_config
from noisescale.problems.models import cross_entropy
from noisescale.problems.problem import Examples, Problem
from noisescale.statistics.critical_batch.fit import fit_critical_batch
from noisescale.statistics.estimate import undefined
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.options import StudyOptions
from noisescale.studies.recommend import look, run as study, runs, search
from noisescale.studies.recommend.config import Budget, RecommendConfig
from noisescale.studies.recommend.optimizer import caveat
from noisescale.studies.recommend.run import run_recommend
from noisescale.training.config import TrainConfig
from noisescale.training.records.folder import read_json
from noisescale.training.tracking import noise
from noisescale.training.trainer import Training
from noisescale.training.updates.in_place import compiled
from noisescale.training.updates.in_place.proved import PROVED_UPDATES
from tests.helpers import own_problems as problems
from tests.helpers.command_line import strict

HERE = Path(problems.__file__)
QUIET = StudyOptions(pictures=False)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


def config(factory="quadratic", **settings):
    settings = {"batch_size": 64, "epochs": 1, "minutes": 5.0} | settings
    return RecommendConfig(problem=factory_config(f"{HERE}:{factory}"), **settings)


class Clock:
    """A clock that only the work moves: seconds of an update, a look and a measured example."""

    def __init__(self, monkeypatch, *, update=0.01, a_look=0.05, example=1e-4, slower=1.0):
        self.now = 0.0
        self.num_updates = 0
        self.slower = slower  # times, from the end of the first look on
        self._spend(monkeypatch, Training, "_update", lambda *_: update)
        self._spend(monkeypatch, runs.LossCurve, "look", lambda *_: a_look)
        for module in (look, noise):
            self._spend(monkeypatch, module, "measure_noise", lambda *_: example)

    def _spend(self, monkeypatch, owner, name, seconds):
        function = getattr(owner, name)

        def timed(*args, **options):
            done = function(*args, **options)
            examples = getattr(done, "num_examples", 1)
            factor = self.slower if self.num_updates > look.MOST_TIMED else 1.0
            self.now += factor * seconds() * examples
            self.num_updates += name == "_update"
            return done

        monkeypatch.setattr(owner, name, timed)

    def __call__(self):
        return self.now


def test_the_interval_holds_the_critical_batch_size_of_a_quadratic(tmp_path):
    """That of the exact expected losses, at the best of many rates, to where the run ended."""
    found = run_recommend(config(), tmp_path / "out", options=QUIET)
    record = found.summary["measurements"]
    rates = np.geomspace(0.003, 1.9, 60)
    goal = record["run"]["final_loss"]
    assert goal > 0.04 * record["start"]["loss"]  # where the intervals are calibrated
    steps = [
        problems.steps_to(goal, batch_size=size, rates=rates, longest=10_000) for size in SIZES
    ]
    exact = fit_critical_batch(SIZES, steps).critical_batch_size.value
    balanced = found.advice.sizes[1]
    assert balanced.low <= exact <= balanced.high
    assert balanced.high < 30 * balanced.low  # it says something
    # the rate that was found takes little longer than the best one, by the exact losses
    taken = [
        problems.steps_to(goal, batch_size=64, rates=of, longest=10_000)
        for of in ([record["learning_rate"]["value"]], rates)
    ]
    assert taken[0] <= 1.6 * taken[1]


@pytest.mark.parametrize("slower", [1.0, 4.0])
@pytest.mark.parametrize("minutes", [0.5, 2.0])
def test_the_budget_is_kept(tmp_path, monkeypatch, minutes, slower):
    """Of a problem that would take an hour, also where the machine slows down after the look."""
    clock = Clock(monkeypatch, update=0.1, a_look=0.02, example=1e-4, slower=slower)
    asked = config(epochs=300, minutes=minutes)
    found = run_recommend(asked, tmp_path / "out", options=QUIET, clock=clock)
    assert 0.5 * 60 * minutes < clock.now <= 60 * minutes
    assert len(found.advice.sizes) == 3
    assert any("all that the time allows" in note for note in found.notes)
    assert found.advice.cost.endswith(
        f"{found.summary['measurements']['run']['steps']:,} steps "
        f"to loss {found.summary['measurements']['run']['final_loss']:.3g}."
    )


def test_what_is_cheap_takes_what_it_takes(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, update=1e-3, a_look=1e-3, example=1e-6)
    found = run_recommend(config(), tmp_path / "out", options=QUIET, clock=clock)
    assert clock.now < 30
    assert found.summary["measurements"]["run"]["steps"] == 32  # an epoch


def test_minutes_that_are_too_few_say_how_many_would_do(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, update=5.0)
    with pytest.raises(SettingError, match=r"too few: .* give --minutes (\d+) or more") as caught:
        run_recommend(config(), tmp_path / "out", options=QUIET, clock=clock)
    needed = float(str(caught.value).split("--minutes ")[1].split()[0])
    found = run_recommend(config(minutes=needed), tmp_path / "out", options=QUIET, clock=clock)
    assert found.advice.sizes


class Killed(BaseException):
    """As a kill: nothing catches it."""


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_killed_one_goes_on_with_what_is_missing(tmp_path, monkeypatch, after):
    """Finished rates are read and not run; the answer is that of a run without interruption."""
    whole = run_recommend(config(), tmp_path / "whole", options=QUIET)
    calls = []
    original = study.rate_run, study.tracked_run

    def counted(function):
        def run(cell, *args, **options):
            if len(calls) == after:
                raise Killed
            fresh = not (cell.path / "summary.json").exists()
            done = function(cell, *args, **options)
            calls.append((cell.path.name, fresh))
            return done

        return run

    monkeypatch.setattr(study, "rate_run", counted(original[0]))
    monkeypatch.setattr(study, "tracked_run", counted(original[1]))
    with pytest.raises(Killed):
        run_recommend(config(), tmp_path / "out", options=QUIET)
    first, after = list(calls), math.inf
    calls.clear()
    again = run_recommend(config(), tmp_path / "out", options=QUIET)
    assert [name for name, fresh in calls if not fresh] == [name for name, _ in first]
    assert again.advice.sizes == whole.advice.sizes


def test_a_finished_folder_is_read_and_nothing_computed(tmp_path, monkeypatch):
    found = run_recommend(config(), tmp_path / "out", options=QUIET)
    monkeypatch.setattr(study, "look_at", None)
    again = run_recommend(config(minutes=7.0), tmp_path / "out", options=QUIET)
    assert again == found
    with pytest.raises(RunFolderError, match="batch_size is 64 there, 32 here"):
        run_recommend(config(batch_size=32), tmp_path / "out", options=QUIET)


def test_force_begins_anew(tmp_path):
    first = run_recommend(config(), tmp_path / "out", options=QUIET)
    stamp = (tmp_path / "out" / "look.json").stat().st_mtime_ns
    again = run_recommend(config(batch_size=32), tmp_path / "out", options=QUIET, force=True)
    assert again.summary["batch_size"] == 32
    assert (tmp_path / "out" / "look.json").stat().st_mtime_ns != stamp
    assert first.summary["batch_size"] == 64


def test_a_search_that_time_ends_early_says_so(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, update=0.1, a_look=0.02, slower=8.0)
    found = run_recommend(config(epochs=300), tmp_path / "out", options=QUIET, clock=clock)
    assert clock.now <= 300
    assert any("ended for want of time" in note for note in found.notes)


def test_the_folder_holds_tables_report_picture_and_strict_json(tmp_path):
    out = tmp_path / "out"
    found = run_recommend(config(), out)
    summary = strict((out / "summary.json").read_text())
    assert summary == found.summary
    assert [set(row) for row in summary["recommendation"]] == [
        {"aim", "batch_size", "low", "high", "learning_rate"}
    ] * 3
    for row in summary["recommendation"]:
        assert 1 <= row["low"] <= row["batch_size"] <= row["high"] <= problems.NUM_EXAMPLES
        assert row["learning_rate"] > 0
    report = (out / "report.md").read_text()
    assert "\n".join(found.advice.block()) in report
    assert (out / "recommendation.png").stat().st_size > 10_000
    assert {"noise.csv", "losses.csv", "learning_rates.csv"} <= {
        path.name for path in out.iterdir()
    }
    (run,) = out.glob("run-lr-*")
    assert read_json(run / "summary.json")["diverged_at_step"] is None


def test_the_batch_size_in_use_stands_beside(tmp_path):
    found = run_recommend(config(), tmp_path / "a", options=QUIET)
    assert found.advice.in_use.startswith("You use 64: ")
    other = run_recommend(config(batch_size=None), tmp_path / "b", options=QUIET)
    assert other.advice.in_use is None


def test_adam_goes_by_the_root_and_says_so(tmp_path):
    training = TrainConfig(optimizer="adam")
    found = run_recommend(config(training=training), tmp_path / "out", options=QUIET)
    small, middle, _ = found.advice.sizes
    sentences = found.advice.sentences
    ratio = math.sqrt(middle.batch_size / small.batch_size)
    assert middle.learning_rate / small.learning_rate == pytest.approx(ratio, rel=0.1)
    assert "Rules of thumb: lr ∝ √B 2205.10287, β₂^(B'/B) 2507.07101." in sentences
    assert found.advice.worth[0].startswith("Noise of the plain gradient; the interval is")
    assert caveat("adam", in_geometry=True).endswith("calibrated for SGD alone.")
    assert caveat("sgd", in_geometry=False) is None
    assert small.beta2 == pytest.approx(0.999 ** (small.batch_size / 64), rel=1e-4)
    assert found.summary["recommendation"][0]["beta2"] == small.beta2
    assert small.weight_decay is None  # of Adam it is a part of the gradient
    assert "--optimizer adam" in found.advice.firmer


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("not_a_number", "the mean loss of the model as it is made is nan"),
        ("no_gradient", "the gradient is zero where the model starts"),
        ("tiny", "3 training examples: the noise of their gradients takes 4 or more"),
        ("climbing", "no learning rate from .* lowers the loss below the .* of the start"),
    ],
)
def test_what_cannot_be_says_so_in_one_message(tmp_path, factory, says):
    with pytest.raises(NoisescaleError, match=says):
        run_recommend(config(factory, batch_size=2), tmp_path / "out", options=QUIET)


def test_a_run_that_diverges_is_made_again_at_half_the_rate(tmp_path, monkeypatch):
    original, rates = study.tracked_run, []

    def unlucky(cell, *args, **options):
        run = original(cell, *args, **options)
        rates.append(cell.training.learning_rate)
        if len(rates) == 1:
            return replace(run, summary={**run.summary, "diverged_at_step": 30})
        return run

    monkeypatch.setattr(study, "tracked_run", unlucky)
    found = run_recommend(config(), tmp_path / "out", options=QUIET)
    assert rates[1] == pytest.approx(rates[0] / 2, rel=0.05)
    assert any("diverged after" in note for note in found.notes)

    monkeypatch.setattr(
        study,
        "tracked_run",
        lambda cell, *args, **options: replace(
            run := original(cell, *args, **options),
            summary={**run.summary, "diverged_at_step": 30},
        ),
    )
    with pytest.raises(MeasurementError, match=r"diverged after .* give --lr"):
        run_recommend(config(batch_size=17), tmp_path / "other", options=QUIET)


def test_a_best_rate_that_no_search_has_found_is_none_that_is_known(tmp_path, monkeypatch):
    """As where time ends the search and the best of the rates tried is at their end."""
    open_ended = property(lambda self: undefined(num_samples=0))
    monkeypatch.setattr(search.Search, "best", open_ended)
    found = run_recommend(config(), tmp_path / "out", options=QUIET)
    assert any("is not known, as it is after a search" in note for note in found.notes)
    assert found.summary["measurements"]["noise"]["relative_rate"] is None


def test_a_run_that_makes_no_progress_is_told_as_one(tmp_path, monkeypatch):
    from noisescale.studies.recommend import results

    def climbing(*args, **options):
        raise NoProgressError("the loss at the end is 1.05 times that at the start")

    monkeypatch.setattr(results, "recommend", climbing)
    found = run_recommend(config(), tmp_path / "out", options=QUIET)
    assert found.summary["reason"] == "the loss at the end is 1.05 times that at the start"


def test_an_unresolved_noise_scale_is_an_answer(tmp_path, monkeypatch):
    from noisescale.studies.recommend import results

    def unresolved(*args, **options):
        raise MeasurementError("1 of 17 measurements along the run have a noise scale")

    monkeypatch.setattr(results, "recommend", unresolved)
    found = run_recommend(config(), tmp_path / "out")  # whose picture has no sizes
    assert found.summary["recommendation"] == []
    assert (tmp_path / "out" / "recommendation.png").exists()
    assert "cannot be told from zero" in found.summary["reason"]
    assert "Not resolved:" in "\n".join(found.advice.block())
    json.dumps(found.summary, allow_nan=False)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"minutes": 0}, "minutes 0: give a number above 0"),
        ({"minutes": math.nan}, "minutes nan"),
        ({"batch_size": 0}, "batch size 0"),
        ({"epochs": 0}, "epochs 0"),
        ({"learning_rate": -1.0}, r"learning rate -1\.0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(SettingError, match=says):
        config(**settings)


def test_a_batch_larger_than_the_data_is_refused(tmp_path):
    with pytest.raises(SettingError, match="there are 2000 training examples"):
        run_recommend(config(batch_size=5000), tmp_path / "out", options=QUIET)


def test_updates_are_timed_as_runs_make_them(tmp_path):
    """Several in a call where they are compiled: a second a call is no second an update."""
    ticks = itertools.count()
    budget = Budget(1e6, lambda: float(next(ticks)))
    examples = Examples(torch.randn(200, 6), torch.randint(3, (200,)))
    problem = Problem(model=nn.Linear(6, 3), loss=cross_entropy, train=examples)
    cell = Cell(path=tmp_path, problem=config().problem, training=TrainConfig())
    found = look._seconds_of_update(problem, cell, 1, 0.1, budget)
    in_a_call = look.MOST_TIMED - PROVED_UPDATES
    assert found == pytest.approx(1.0 if compiled.sgd is None else 1 / in_a_call)
