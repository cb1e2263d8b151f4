"""From run folders to tables to pictures, and the committed tables themselves."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from analysis.__main__ import main as analysis
from analysis.stability.edge_of_stability import AFTER_CROSSING, windows_table
from analysis.stability.three_cases import difference_table
from experiments.stability import edge_of_stability
from experiments.stability.three_cases import SCALES, grid
from noisescale.problems.config import ProblemConfig
from noisescale.training.config import TrainConfig
from noisescale.training.records.folder import record_experiment
from noisescale.training.records.names import run_name
from noisescale.training.run import RunOptions, run_training
from paper_figures.__main__ import FIGURES, OF_BENCHMARKS, RESULTS, main as paper_figures
from paper_figures.style import read_table
from tests.helpers.paths import ROOT

COMMITTED = sorted((ROOT / "paper_figures" / "data").glob("*/*.csv"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The study in small: digits, one epoch; B = 1 at raw pixels diverges, as at the real size."""
    root = tmp_path_factory.mktemp("runs")
    record_experiment(root, command="python -m experiments three_cases --scale small")
    for pixel_scale in ("raw", "unit"):
        for batch_size in (1024, 32, 1):
            for seed in (0, 1):
                rate = 1e30 if (pixel_scale, batch_size) == ("raw", 1) else 1e-3
                problem = ProblemConfig(dataset="digits", width=8, pixel_scale=pixel_scale)
                training = TrainConfig(
                    batch_size=batch_size, learning_rate=rate, epochs=1, seed=seed
                )
                run_training(
                    problem, training, root / f"{pixel_scale}-{run_name(problem, training)}"
                )
    return root


def test_the_grid_is_the_study(tmp_path):
    cases = grid(**SCALES["full"])
    assert len(cases) == 2 * (5 + 5 + 3)
    assert {training.epochs for _, training in cases} == {30}
    assert {training.learning_rate for _, training in cases} == {1e-3}
    assert all(problem == ProblemConfig(pixel_scale=problem.pixel_scale) for problem, _ in cases)
    assert len({run_name(*case) for case in cases}) == len(cases)


@pytest.mark.slow
def test_runs_become_tables_and_tables_become_pictures(runs, tmp_path):
    data = tmp_path / "data"
    result = CliRunner().invoke(
        analysis, ["three_cases", str(runs), "--out", str(data / "three_cases")]
    )
    assert result.exit_code == 0, result.output
    runs_of = read_table(data / "three_cases" / "runs.csv").set_index(["pixel_scale", "batch_size"])
    summaries = {
        path.parent.name: json.loads(path.read_text())
        for path in sorted(runs.glob("unit-*bs32*/summary.json"))
    }
    losses = sorted(summary["test"]["loss"] for summary in summaries.values())
    ours = runs_of.loc[("unit", "32")]
    assert sorted(ours["test_loss"]) == pytest.approx(losses, rel=1e-5)
    # an epoch of the digits is 1,297 examples: 40 batches of 32 and one of 17
    batches = [pd.read_csv(runs / name / "losses.csv")["loss"] for name in summaries]
    while_training = [(32 * loss[:40].sum() + 17 * loss[40]) / 1297 for loss in batches]
    assert sorted(ours["loss_while_training"]) == pytest.approx(sorted(while_training), rel=1e-5)
    assert runs_of.loc[("raw", "1"), "diverged_at_step"].notna().all()
    assert runs_of.loc[("raw", "1"), "test_loss"].isna().all()
    header = (data / "three_cases" / "runs.csv").read_text().splitlines()[0]
    assert header.startswith(
        "# command: python -m experiments three_cases --scale small && python -m analysis"
    )
    curves = read_table(data / "three_cases" / "curves.csv")
    unit = curves.query("pixel_scale == 'unit' and batch_size == '1'")
    assert unit["epoch"].tolist() == [0, 1, 0, 1]

    (data / "published.csv").write_bytes(
        (ROOT / "paper_figures" / "data" / "published.csv").read_bytes()
    )
    result = CliRunner().invoke(
        paper_figures, ["three_cases", "--data", str(data), "--out", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    for suffix in ("png", "pdf"):
        assert (tmp_path / f"three_cases.{suffix}").stat().st_size > 10_000


def test_a_run_is_held_against_the_published_one_by_students_t():
    ends = pd.DataFrame(
        {
            "batch_size": [32, 32, 32, 1, 1],
            "test_loss": [1.0, 2.0, 3.0, np.nan, np.nan],
            "diverged_at_step": [None, None, None, 20, 21],
        }
    )
    published = pd.DataFrame(
        [(32, "test_loss", 1.5), (1, "test_loss", np.nan), (32, "seconds", 7.0)],
        columns=["batch_size", "quantity", "value"],
    )
    (row,) = difference_table(ends, published).to_dict("records")
    assert row.pop("quantity") == "test_loss"
    # t(2) reaches 4.3027; s = 1, s/√3 of the mean, s·√(1 + 1/3) of another run
    assert row == pytest.approx(
        {
            "batch_size": 32,
            "published": 1.5,
            "difference": 0.5,
            "low": 0.5 - 4.302653 / 3**0.5,
            "high": 0.5 + 4.302653 / 3**0.5,
            "run_low": 0.5 - 4.302653 * (4 / 3) ** 0.5,
            "run_high": 0.5 + 4.302653 * (4 / 3) ** 0.5,
            "num_seeds": 3,
        },
        rel=1e-6,
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The edge of stability in small: digits, both losses, gradient descent and SGD."""
    root = tmp_path_factory.mktemp("measured")
    record_experiment(root, command="python -m experiments edge_of_stability --scale small")
    for loss in ("cross_entropy", "mse"):
        for batch_size, rate in (("full", 0.1), ("full", 0.4), (8, 0.1)):
            problem = ProblemConfig(dataset="digits", width=8, num_train=100, loss=loss)
            training = TrainConfig(
                batch_size=batch_size, learning_rate=rate, epochs=6, max_steps=20
            )
            every = {"full": 2, 8: 10}[batch_size]
            options = RunOptions(measure_sharpness_every=every)
            run_training(problem, training, root / f"{loss}-{run_name(problem, training)}", options)
    return root


@pytest.mark.slow
def test_measurements_along_training_become_tables_and_a_picture(measured, tmp_path):
    tables = tmp_path / "data" / "edge_of_stability"
    result = CliRunner().invoke(
        analysis, ["edge_of_stability", str(measured), "--out", str(tables)]
    )
    assert result.exit_code == 0, result.output
    curves, windows = read_table(tables / "curves.csv"), read_table(tables / "windows.csv")
    run = curves.query("loss == 'mse' and batch_size == 'full' and learning_rate == 0.4")
    assert run["step"].tolist() == [0, 2, 4, 6]
    assert (run["stable_sharpness"] == 5).all()
    row = windows.query("loss == 'mse' and batch_size == 'full' and learning_rate == 0.4").iloc[0]
    ratios = run["largest_eigenvalue"] / 5
    assert row["largest_eigenvalue_peak"] == pytest.approx(ratios.max(), rel=1e-4)
    assert row["largest_eigenvalue_last_half"] == pytest.approx(
        ratios[run["step"] >= 3].median(), rel=1e-4
    )
    arguments = ["edge_of_stability", "--data", str(tmp_path / "data"), "--out", str(tmp_path)]
    assert CliRunner().invoke(paper_figures, arguments).exit_code == 0
    assert (tmp_path / "edge_of_stability.png").stat().st_size > 10_000


def test_medians_are_over_windows_that_no_result_selects(monkeypatch):
    monkeypatch.setitem(AFTER_CROSSING, "full", 20)

    def rows(batch_size, ratios):
        leading = "largest_eigenvalue" if batch_size == "full" else "batch_sharpness"
        other = {"largest_eigenvalue": "batch_sharpness", "batch_sharpness": "largest_eigenvalue"}[
            leading
        ]
        table = pd.DataFrame({"step": range(0, 10 * len(ratios), 10), "stable_sharpness": 4.0})
        table = table.assign(loss="mse", batch_size=batch_size, learning_rate=0.5, seed=0)
        return table.assign(**{leading: [4 * ratio for ratio in ratios], other: 1.0})

    curves = pd.concat(
        [rows("8", [0.1, 0.9, 0.2, 0.3, 0.4, 0.5]), rows("full", [0.1, 1.2, 0.7, 0.6, 0.2])]
    )
    table = windows_table(curves.reset_index(drop=True)).set_index("batch_size")
    descent, stochastic = table.loc["full"], table.loc["8"]
    assert descent["crossing_step"] == 10
    assert descent["largest_eigenvalue_after_crossing"] == pytest.approx(0.7)  # of 1.2, .7, .6
    assert descent["largest_eigenvalue_last_half"] == pytest.approx(0.6)  # of .7, .6, .2
    assert descent["slope"] == pytest.approx(-25)  # per 1,000 steps
    assert pd.isna(stochastic["crossing_step"])
    assert pd.isna(stochastic["batch_sharpness_after_crossing"])
    assert stochastic["batch_sharpness_last_half"] == pytest.approx(0.4)
    assert stochastic["slope"] == pytest.approx(10)


def test_the_windows_are_made_of_the_committed_curves(tmp_path):
    result = CliRunner().invoke(analysis, ["edge_of_stability", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    committed = ROOT / "paper_figures" / "data" / "edge_of_stability" / "windows.csv"
    assert (tmp_path / "windows.csv").read_bytes() == committed.read_bytes()


def test_the_experiment_has_both_losses_three_rates_and_sgd():
    cases = edge_of_stability.cases("full")
    assert len({folder for folder, *_ in cases}) == len(cases)
    for loss in ("cross_entropy", "mse"):
        own = [training for _, problem, training, _ in cases if problem.loss == loss]
        rates = {training.learning_rate for training in own if training.batch_size == "full"}
        assert len(rates) >= 3
        assert any(training.batch_size == 8 for training in own)
    assert all((problem.num_train, problem.width) == (5000, 200) for _, problem, _, _ in cases)
    assert all(options.measure_sharpness_every for *_, options in cases)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("adaptive_batch", marks=pytest.mark.slow),  # a jackknife of 24 comparisons
        *("critical_batch", "edge_of_stability", "noise_growth"),
    ],
)
def test_committed_tables_are_what_is_made_of_the_committed_measurements(name, tmp_path):
    """A changed estimator leaves the tables, and the claims that rest on them, behind."""
    found = CliRunner().invoke(analysis, [name, "--out", str(tmp_path)])
    assert found.exit_code == 0, found.output
    made = sorted(tmp_path.glob("*.csv"))
    assert made
    for path in made:
        committed = ROOT / "paper_figures" / "data" / name / path.name
        assert path.read_text().splitlines()[0].endswith(f"python -m analysis {name}")
        # measurements are committed to six digits, of which a difference near 0 keeps fewer
        pd.testing.assert_frame_equal(read_table(path), read_table(committed), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("table", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_committed_table_says_how_it_came_about(table):
    header = [line for line in table.read_text().splitlines() if line.startswith("#")]
    assert [line.split(":")[0] for line in header] == [
        "# command",
        "# commit",
        "# machine",
        "# date",
        "# seeds",
    ]
    assert "+changes" not in header[1]
    assert re.match(
        r"# commit: [0-9a-f]{12}(, [0-9a-f]{12})*$", header[1]
    )  # of the runs, begun and gone on
    assert len(read_table(table)) > 0


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_committed_and_its_committed_tables_can_be_drawn(name):
    assert (ROOT / "paper_figures" / "pictures" / f"{name}.png").exists()
    drawn = FIGURES[name](ROOT / "paper_figures" / "data")
    drawn.draw_without_rendering()
    assert all(axes.has_data() for axes in drawn.axes if axes.axison)


@pytest.mark.parametrize("name", OF_BENCHMARKS)
def test_the_figure_of_a_benchmark_is_committed_and_drawn_from_its_results(name):
    assert (ROOT / "paper_figures" / "pictures" / f"{name}.png").exists()
    drawn = OF_BENCHMARKS[name](RESULTS)
    drawn.draw_without_rendering()
    for axes in drawn.axes:
        texts = axes.get_legend().get_texts()
        assert len(axes.lines) == 2 * len(texts)  # a line and the points it fits
        for line, points in zip(axes.lines[::2], axes.lines[1::2], strict=True):
            assert abs(np.log(line.get_ydata() / points.get_ydata())).max() < 1


@pytest.mark.slow
def test_every_figure_is_committed_and_can_be_drawn_from_the_committed_tables(tmp_path):
    assert CliRunner().invoke(paper_figures, ["--out", str(tmp_path)]).exit_code == 0
    for name in FIGURES:
        assert (tmp_path / f"{name}.png").exists()
        assert (ROOT / "paper_figures" / "pictures" / f"{name}.png").exists()
