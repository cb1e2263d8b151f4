"""Every figure the tool can make, drawn from a small run and looked at by rule."""

from collections import namedtuple
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot
from matplotlib.figure import Figure

from noisescale import (
    NoiseOptions,
    SharpnessOptions,
    fit_critical_batch,
    measure_noise,
    measure_sharpness,
    recommend,
)
from noisescale.plots.critical_batch import branch_figure
from noisescale.plots.recommendation import recommendation_figure
from noisescale.plots.stability_map import CURVES, map_figure
from noisescale.statistics.critical_batch.branches import BRANCH_COLUMNS, branch_means
from tests.helpers.command_line import run
from tests.helpers.goal_tables import SIZES, synthetic
from tests.helpers.pictures import faults, title_of

AimedSize = namedtuple("AimedSize", "aim batch_size low high learning_rate")

pytestmark = [pytest.mark.pictures, pytest.mark.slow]

FACTORY = """
import torch
from noisescale import Problem, Examples

def make():
    torch.manual_seed(0)
    inputs = torch.randn(60, 4)
    targets = (inputs[:, 0] > 0).long()
    loss = torch.nn.CrossEntropyLoss(reduction="none")
    return Problem(model=torch.nn.Linear(4, 2), loss=loss, train=Examples(inputs, targets))
"""
# what the title of each figure says
SETTINGS = ("digits, MLP of width 8", "B = 16", "learning rate 0.1")
FIGURES = {
    "runs/bs16/curves": (*SETTINGS, "82 steps, 1 epoch"),
    "runs/bs16/confusion": SETTINGS,
    "runs/bs16/sharpness": SETTINGS,
    "runs/bs16/noise": SETTINGS,
    "runs/bs64/curves": ("B = 64", "21 steps"),
    "runs/bs1/curves": ("B = 1,", "1,297 steps"),
    "runs/comparison": ("digits, MLP of width 8", "learning rate 0.1", "3 runs"),
    "adaptive/curves": ("B = adaptive",),
    "adaptive/batch_size": ("B = adaptive",),
    "adaptive/noise": ("B = adaptive",),
    "diverged/curves": ("B = 2,", "learning rate 1e+09", "steps"),
    "losses": (*SETTINGS, "losses.csv"),
    "noise of one checkpoint": (*SETTINGS, "step 82", "400 of 1,297 train examples"),
    "noise with its parts": (*SETTINGS, "step 82", "all 1,297 train examples"),
    "noise that is not resolved": (*SETTINGS, "12 of 1,297"),
    "noise along training": (*SETTINGS, "checkpoints"),
    "noise of a model as it is made": ("own.py:make", "all 60 train examples"),
    "noise of foreign weights": ("2 checkpoints", "all 60 train examples"),
    "sharpness of one checkpoint": (*SETTINGS, "step 82"),
    "density and phi": (*SETTINGS, "200 of 1,297"),
    "sharpness along training": (*SETTINGS, "checkpoints"),
    "sharpness of foreign weights": ("2 checkpoints", "all 60 train examples"),
    "densities of foreign weights": ("2 checkpoints",),
    "sharpness of a model as it is made": ("own.py:make",),
    "sweep": ("digits (100 examples), MLP of width 4 and depth 1", "12 steps"),
    "cells": ("cells.csv",),
    "map with every curve": ("a title",),
    "map at a minimum": ("a title",),
    "critical batch": ("digits (200 examples), MLP of width 8 and depth 1",),
    "noise beside a critical batch": ("digits (200 examples)", "noise.csv"),
    "steps without a goal": ("steps.csv",),
    "steps to two goals": ("goals.csv",),
    "branches": ("a title",),
    "recommendation": ("a title",),
    "NoiseScale.plot": (r"B_{\mathrm{simple}}", "60 of 60 examples"),
    "Sharpness.plot": ("60 of 60 train examples",),
    "CriticalBatchFit.plot": (r"B_{\mathrm{crit}}",),
    "SweepResult.plot": (),
    "Recommendation.plot": (r"B_{\mathrm{crit}}",),
}


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, finished_sweep, finished_critical_batch, drawing):
    """All figures, as the commands drew them, and the results that draw themselves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("figures"))
        gallery = Gallery(patch)
        gallery.train()
        gallery.measure()
        gallery.study(finished_sweep, finished_critical_batch)
        gallery.results(finished_sweep)
        yield gallery
    pyplot.close("all")


@pytest.fixture(scope="module")
def figures(gallery):
    return gallery.drawn


class Gallery:
    """Runs commands and keeps the figures that they save."""

    def __init__(self, patch):
        self.drawn = {}
        self.made = {}
        self._saved = []
        patch.setattr(Figure, "savefig", lambda figure, *_, **__: self._saved.append(figure))

    def command(self, name, *arguments):
        """A command that draws one figure."""
        self._saved.clear()
        result = run(*arguments)
        assert result.exit_code == 0, result.output
        (self.drawn[name],) = self._saved

    def folder(self, path):
        """A run's pictures, by their paths."""
        self._saved.clear()
        result = run("plot", path)
        assert result.exit_code == 0, result.output
        for picture, figure in zip(result.stdout.split(), self._saved, strict=True):
            self.drawn[picture.removesuffix(".png")] = figure

    def train(self):
        small = ("--dataset", "digits", "--width", 8, "--epochs", 1, "--lr", 0.1)
        noise = ("--measure-noise-every", 40, "--noise-examples", 800)
        sharp = ("--measure-sharpness-every", 40, "--sharpness-examples", 50)
        tracked = ("--bs", 16, "--noise-hessian", "--checkpoint-every", 30)
        sizes = ("--bs", 16, "--bs", 64, "--bs", 1)
        for arguments in (
            (*sizes, *small, "--out", "runs"),
            (*tracked, *small, *noise, *sharp, "--out", "tracked"),
            ("--bs", "adaptive", *small, *noise, "--out", "adaptive"),
            ("--bs", 2, *small, "--lr", 1e9, "--out", "diverged"),
        ):
            result = run("train", *arguments)
            assert result.exit_code == 0, result.output
        for path in ("runs", "adaptive", "diverged"):
            self.folder(path)
        self.folder("tracked")
        for name in ("curves", "confusion", "sharpness", "noise"):
            self.drawn[f"runs/bs16/{name}"] = self.drawn[f"tracked/{name}"]
        self.command("losses", "plot", "runs/bs16/losses.csv")

    def measure(self):
        file, plot = "tracked/checkpoint.pt", ("--plot", "any.png")
        Path("own.py").write_text(FACTORY)
        for name in ("a.pt", "b.pt"):
            torch.manual_seed(ord(name[0]))
            torch.save(torch.nn.Linear(4, 2).state_dict(), name)
        own = ("--problem", "own.py:make")
        noise, sharp = ("measure-noise",), ("sharpness",)
        parts = ("--hessian", "--per-layer", "--per-class", "--anatomy")
        self.command("noise of one checkpoint", *noise, file, "--num-examples", 400, *plot)
        self.command("noise with its parts", *noise, file, *parts, *plot)
        self.command("noise that is not resolved", *noise, file, "--num-examples", 12, *plot)
        self.command("noise along training", *noise, "tracked", "--num-examples", 300, *plot)
        self.command("noise of a model as it is made", *noise, *own, *plot)
        self.command("noise of foreign weights", *noise, "a.pt", "b.pt", *own, *plot)
        top = ("--top", 3, "--bottom", 2, "--batch-sharpness", 16)
        few = ("--num-examples", 200)
        self.command("sharpness of one checkpoint", *sharp, file, *top, *few, *plot)
        self.command("density and phi", *sharp, file, "--density", "--phi", *few, *plot)
        self.command("sharpness along training", *sharp, "tracked", *few, *plot)
        self.command("sharpness of foreign weights", *sharp, "a.pt", "b.pt", *own, *plot)
        density = ("--density", "--phi")
        self.command("densities of foreign weights", *sharp, "a.pt", "b.pt", *own, *density, *plot)
        self.command("sharpness of a model as it is made", *sharp, *own, *plot)

    def study(self, sweep, critical):
        self.command("sweep", "plot", sweep.out, "--out", "pictures")
        sweep.result.cells.to_csv("cells.csv", index=False, na_rep="nan")
        self.command("cells", "plot", "cells.csv")
        boundary = sweep.result.boundary.copy()
        for place, name in enumerate(CURVES):
            boundary[name] = 2.0**place * np.array([1.0, 4.0])
        boundary["lower_low"], boundary["lower_high"] = 0.0, boundary["lower"]
        for name, minimum in (("map with every curve", False), ("map at a minimum", True)):
            self.drawn[name] = map_figure(
                sweep.result.cells, boundary, title="a title", minimum=minimum
            )
        self.command("critical batch", "plot", critical.out, "--out", "pictures")
        noise = critical.out / "noise.csv"
        self.command("noise beside a critical batch", "plot", noise, "--out", "pictures")
        steps = [round(100 * (1 + 64 / size)) for size in SIZES]
        pd.DataFrame({"batch_size": SIZES, "steps": steps}).to_csv("steps.csv", index=False)
        self.command("steps without a goal", "plot", "steps.csv")
        table = synthetic()
        table.loc[table["batch_size"] == 128, "censored"] = 1
        table.to_csv("goals.csv", index=False, na_rep="nan")
        self.command("steps to two goals", "plot", "goals.csv")
        rows = [(8 * 2**k, 0.1, seed, 100, 1 + 0.1 * k, 0) for k in range(4) for seed in (0, 1)]
        rows.append((128, 0.1, 0, 100, np.nan, 1))
        branches = pd.DataFrame(rows, columns=list(BRANCH_COLUMNS))
        critical_size = {"value": 20.0, "low": 12.0, "high": 30.0}
        summary = {"tolerance": 0.05, "critical_batch_size": critical_size}
        rates = pd.DataFrame({"learning_rate": [0.1, 0.3, 1.0], "loss": [2.0, 1.2, np.inf]})
        sizes = [
            AimedSize("fewest examples", 4, 2.0, 9.0, 0.1),
            AimedSize("balanced", 40, 20.0, 90.0, 0.5),
            AimedSize("fewest steps", 400, 200.0, None, None),
        ]
        tracked = pd.read_csv("tracked/noise.csv")
        self.drawn["recommendation"] = recommendation_figure(
            rates, tracked, [size._asdict() for size in sizes], best=0.3, title="a title"
        )
        self.drawn["branches"] = branch_figure(
            branches, branch_means(branches), summary, title="a title"
        )

    def results(self, sweep):
        from noisescale.problems.factory import load_problem

        problem = load_problem("own.py:make")
        noise = measure_noise(problem, options=NoiseOptions())
        sharpness = measure_sharpness(problem, options=SharpnessOptions(top=2, bottom=1))
        steps = [100 * (1 + 20 / size) * 1.01 ** (size % 3) for size in SIZES]
        rows = pd.read_csv("tracked/noise.csv")
        for name, result in (
            ("NoiseScale", noise),
            ("Sharpness", sharpness),
            ("CriticalBatchFit", fit_critical_batch(SIZES, steps)),
            ("SweepResult", sweep.result),
            ("Recommendation", recommend(rows, learning_rate=0.1)),
        ):
            self.made[name] = result
            self.drawn[f"{name}.plot"] = result.plot().figure


def test_none_is_missing(figures):
    of_runs = {name for name in figures if "/" in name}  # of whose kinds one is looked at
    assert set(figures) - of_runs == {name for name in FIGURES if "/" not in name}


@pytest.mark.parametrize("name", FIGURES)
def test_it_can_be_read(name, figures):
    figure = figures[name]
    assert faults(figure) == []
    assert [words for words in FIGURES[name] if words not in title_of(figure)] == []


@pytest.mark.parametrize(
    "name",
    ["NoiseScale", "Sharpness", "CriticalBatchFit", "SweepResult", "Recommendation"],
)
def test_a_result_draws_itself_on_axes_of_ones_own(name, figures, gallery):
    ours = Figure(layout="constrained").subplots()
    assert gallery.made[name].plot(ours) is ours
    assert figures[f"{name}.plot"] is not ours.figure


def test_a_run_that_diverged_is_shown_up_to_there(figures):
    loss, accuracy = figures["diverged/curves"].axes
    (step,) = set(pd.read_csv("diverged/metrics.csv")["step"]) - {0}
    for axes in (loss, accuracy):
        (mark,) = [line for line in axes.lines if "diverged" in line.get_label()]
        assert mark.get_label() == f"diverged at step {step:,}"
    batches = next(line for line in loss.lines if line.get_label() == "batches")
    assert len(batches.get_xdata()) == step - 1  # one by one, and the last one is not finite
