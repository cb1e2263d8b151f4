"""Sweeps with folds: what is held out of each run, what is chosen by it, and what is refused."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from noisescale.cli import main
from noisescale.errors import RunFolderError, SettingError
from noisescale.problems.build import build_problem
from noisescale.problems.problem import Examples, Problem
from noisescale.problems.sampling import independent_seed, without_fold
from noisescale.statistics.scores.cross_validation import choose_rate, fold_indices
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.stability_map.replicas import alike
from noisescale.studies.stability_map.results import read_sweep
from noisescale.studies.stability_map.run import run_sweep
from noisescale.studies.stability_map.tables import rates_by_folds
from noisescale.training.config import TrainConfig
from noisescale.training.evaluation import evaluate
from noisescale.training.trainer import Training
from tests.helpers.executors import Here
from tests.helpers.sweeps import CONFIG, PROBLEM, QUIET

K = 3
FOLDS = replace(CONFIG, folds=K, num_seeds=K, num_lr=4, lr_max=100.0)


@pytest.fixture(scope="module")
def folded(tmp_path_factory):
    """A sweep with folds: its folder and result."""
    out = tmp_path_factory.mktemp("folds") / "sweep"
    return out, run_sweep(FOLDS, out, executor=Here(), options=QUIET)


def test_each_example_is_held_out_once_and_never_trained_on_there():
    values = torch.arange(11)
    problem = Problem(
        model=torch.nn.Linear(1, 1),
        loss=torch.nn.MSELoss(reduction="none"),
        train=Examples(values, values),
    )
    parts = [without_fold(problem, fold, K) for fold in range(K)]
    held_out = [part.validation.inputs.tolist() for part in parts]
    assert sorted(index for fold in held_out for index in fold) == values.tolist()
    for part, left_out in zip(parts, held_out, strict=True):
        assert sorted(part.train.inputs.tolist() + left_out) == values.tolist()
        assert (part.train.targets == part.train.inputs).all()


def test_the_held_out_scores_are_those_of_a_plain_run(folded):
    _, result = folded
    rows = result.cells.query("batch_size == 4 and learning_rate == learning_rate.min()")
    problem = build_problem(PROBLEM)
    for row in rows.to_dict("records"):
        fold = row["seed"]
        held_out = torch.from_numpy(fold_indices(100, K)[fold])
        kept = torch.tensor([index for index in range(100) if index not in held_out])
        config = FOLDS.run(4, row["learning_rate"], fold, num_examples=66)
        config = replace(config, order_seed=independent_seed(fold, "4"))
        own = replace(build_problem(PROBLEM, seed=fold), train=problem.train.part(kept))
        training = Training(own, config)
        for _ in training:
            pass
        score = evaluate(training.model, problem.loss, problem.train.part(held_out))
        assert row["held_out_loss"] == pytest.approx(score.loss, rel=1e-6)
        assert row["held_out_error"] == pytest.approx(1 - score.accuracy)


def test_the_rate_is_chosen_by_the_scores_of_its_own_batch_size(folded):
    out, result = folded
    assert set(result.cross_validation) == {4, 50}
    for size, found in result.cross_validation.items():
        cells = result.cells[result.cells["batch_size"] == size]
        rates = sorted(cells["learning_rate"].unique())
        scores = np.full((K, len(rates)), math.nan)
        for cell in cells.to_dict("records"):
            if cell["label"] != "diverged":
                scores[cell["seed"], rates.index(cell["learning_rate"])] = cell["held_out_error"]
        expected = choose_rate(rates, scores)
        assert (found.chosen, found.best, found.rates) == (
            expected.chosen,
            expected.best,
            expected.rates,
        )
    aimed = {aim.batch_size: aim.learning_rate for aim in result.advice.sizes}
    for size, rate in aimed.items():
        assert rate == result.cross_validation[size].chosen
    assert "held-out error" in result.advice.heading
    again = read_sweep(out)
    assert again.config.folds == K
    assert again.cross_validation.keys() == result.cross_validation.keys()
    record = json.loads((out / "summary.json").read_text())["cross_validation"]
    assert [(row["batch_size"], row["score"]) for row in record] == [(4, "error"), (50, "error")]


def test_a_finished_sweep_with_folds_runs_nothing_again(folded):
    out, result = folded
    executor = Here()
    again = run_sweep(FOLDS, out, executor=executor, options=QUIET)
    pd.testing.assert_frame_equal(again.cells, result.cells)
    assert executor.cells == []
    assert len(list((out / "cells").iterdir())) == 2 * 4 * K


def test_folders_with_and_without_folds_do_not_mix(folded, finished_sweep):
    out, _ = folded
    plain = replace(FOLDS, folds=None)
    with pytest.raises(RunFolderError, match="folds is 3 there, None here"):
        run_sweep(plain, out, executor=Here(), options=QUIET)
    with pytest.raises(RunFolderError, match="folds is None there, 3 here"):
        run_sweep(FOLDS, finished_sweep.out, executor=Here(), options=QUIET)


def test_a_rate_at_which_a_fold_diverged_or_failed_is_not_chosen():
    rows = [
        {
            "batch_size": size,
            "learning_rate": rate,
            "seed": fold,
            "label": "diverged" if size == 8 and rate > 0.1 and fold == 1 else "slow",
            "error": "no memory" if size == 8 and rate < 0.1 and fold == 0 else "",
            "held_out_loss": 2.0 - rate + 0.01 * fold,
            "held_out_error": math.nan,
        }
        for size in (4, 8, 16)
        for rate in (0.01, 0.1, 1.0)
        for fold in range(3)
    ]
    for row in rows:
        if row["batch_size"] == 16:
            row["label"] = "diverged"
    found = rates_by_folds(pd.DataFrame(rows))
    assert {size: chosen.best for size, chosen in found.items()} == {4: 1.0, 8: 0.1}


def test_replicas_share_the_examples_they_train_on(tmp_path):
    training = TrainConfig(batch_size=4)
    cells = [
        Cell(path=tmp_path, problem=PROBLEM, training=training, fold=fold)
        for fold in (None, (0, 2), (1, 2))
    ]
    assert len({alike(cell) for cell in cells}) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"folds": 1, "num_seeds": 1}, "folds 1: nothing would be trained on"),
        ({"folds": 2.5}, "folds 2.5"),
        ({"num_lr": None}, "folds 3 with bisection"),
        ({"num_seeds": 5}, "folds 3 with 5 seeds"),
        ({"precision": 1.5}, "precision 1.5"),
        ({"start": "abc"}, "folds 3 from a checkpoint"),
    ],
)
def test_settings_that_folds_exclude_are_refused(changes, message):
    with pytest.raises(SettingError, match=message):
        replace(FOLDS, **changes)


def test_more_folds_than_examples_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(SettingError, match="there are 100 examples; give 2 to 100"):
        run_sweep(replace(FOLDS, folds=101, num_seeds=101), tmp_path / "sweep", executor=Here())
    assert not (tmp_path / "sweep").exists()


def command(*arguments, monkeypatch):
    monkeypatch.setattr("noisescale.studies.jobs.local.LocalProcesses", lambda count: Here())
    return CliRunner().invoke(main, ["sweep-lr", *map(str, arguments)])


def test_the_command_chooses_a_rate(tmp_path, monkeypatch):
    small = ("--dataset", "digits", "--num-train", 100, "--width", 4, "--depth", 1, "--steps", 6)
    grid = ("--bs", 4, "--lr-min", 0.1, "--lr-max", 10, "--num-lr", 3, "--no-predict")
    found = command(*small, *grid, "--folds", 2, "--out", tmp_path / "map", monkeypatch=monkeypatch)
    assert found.exit_code == 0, found.output
    assert "The learning rate by 2 folds" in found.stdout
    assert "held-out error" in found.stdout
    cells = pd.read_csv(tmp_path / "map" / "cells.csv")
    assert len(cells) == 6
    assert cells["held_out_loss"].notna().all()


@pytest.mark.parametrize(
    ("beside", "named"),
    [(("--seeds", 3), "--seeds"), (("--bisect",), "--bisect"), (("--precision", 2), "--precision")],
)
def test_the_command_refuses_what_folds_decide(beside, named, monkeypatch):
    found = command("--dataset", "digits", "--folds", 2, *beside, monkeypatch=monkeypatch)
    assert found.exit_code == 2
    assert f"--folds runs every rate once with each fold: leave out {named}" in found.output
