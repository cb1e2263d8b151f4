"""The stability maps in small: from sweeps to tables to the picture, and the experiment."""

import dataclasses
import json
import math
from dataclasses import replace

import pandas as pd
import pytest
from click.testing import CliRunner

from analysis.__main__ import main as analysis
from analysis.tables import read_header
from experiments.stability import stability_map
from noisescale.cli import main as noisescale
from noisescale.statistics.estimate import exact
from noisescale.statistics.stability.curves import StabilityConstants
from noisescale.studies.stability_map.config import Horizon
from noisescale.studies.stability_map.run import SweepOptions, run_sweep
from noisescale.training.records.folder import record_experiment
from noisescale.training.records.names import file_digest
from paper_figures.stability.stability_map import MAPS, figure
from paper_figures.stability.stability_prediction import figure as prediction_figure
from paper_figures.style import read_table
from tests.helpers.executors import Here
from tests.helpers.paths import ROOT
from tests.helpers.sweeps import CONFIG, PROBLEM


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    """Four maps of digits: two from initialisation, two from what three epochs lead to."""
    root = tmp_path_factory.mktemp("stability")
    record_experiment(root, command="python -m experiments stability_map --scale small")
    config = replace(CONFIG, batch_sizes=(1, 4, 50))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("noisescale.measure.stability.MOST_STEPS", 30)
        for name in ("unit", "raw"):
            problem = replace(PROBLEM, pixel_scale=name)
            run_sweep(replace(config, problem=problem), root / name, executor=Here())
        for loss in ("mse", "cross_entropy"):
            run = root / f"minimum-{loss}"
            problem = f"--dataset digits --num-train 100 --width 4 --depth 1 --loss {loss}"
            command = f"train {problem} --epochs 3"
            CliRunner().invoke(
                noisescale, [*command.split(), "--out", str(run)], catch_exceptions=False
            )
            start = run / "checkpoint.pt"
            from_here = replace(
                config, problem=replace(PROBLEM, loss=loss), start=file_digest(start)
            )
            run_sweep(from_here, root / loss, executor=Here(), options=SweepOptions(start=start))
    return root


@pytest.mark.slow
def test_sweeps_become_tables_and_the_tables_a_picture(sweeps, tmp_path):
    data = tmp_path / "data" / "stability_map"
    found = CliRunner().invoke(analysis, ["stability_map", str(sweeps), "--out", str(data)])
    assert found.exit_code == 0, found.output
    tables = {
        name: pd.read_csv(
            data / f"{name}.csv", comment="#", keep_default_na=False, na_values=["nan"]
        )
        for name in ("cells", "boundary", "starts", "scores")
    }
    assert tables["cells"]["map"].unique().tolist() == ["unit", "raw", "mse", "cross_entropy"]
    for name in ("unit", "mse"):
        own = pd.read_csv(sweeps / name / "boundary.csv")
        committed = tables["boundary"][tables["boundary"]["map"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(committed[own.columns], own, rtol=1e-5, check_dtype=False)
        start = tables["starts"].set_index("map").loc[name]
        assert start["upper_at_1"] == pytest.approx(own["upper"][0], rel=1e-5)
        assert start["two_over_sharpness"] == pytest.approx(2 / start["sharpness"], rel=1e-5)
    assert len(tables["scores"]) == 4 * 6
    for draw in (figure, prediction_figure):
        titles = {axes.get_title(loc="left") for axes in draw(tmp_path / "data").axes}
        assert {f"From {title}" for title, _ in MAPS.values()} <= titles


def test_starts_alone_are_analysed_with_the_committed_cells(tmp_path):
    """As measured where λ is exact: the edges are then those of the committed table."""
    root = tmp_path / "runs"
    root.mkdir()
    record_experiment(root, command="python -m experiments stability_map --starts-only")
    run = root / "minimum-mse"
    train = "train --dataset digits --num-train 100 --width 4 --depth 1 --epochs 1"
    CliRunner().invoke(noisescale, [*train.split(), "--out", str(run)], catch_exceptions=False)
    estimates = {"sharpness": exact(20.0), "largest_example": exact(400.0)}
    constants = StabilityConstants(
        sharpness=20.0,
        concentration=1.5,
        largest_example=400.0,
        trace=800.0,
        square_deviation=3000.0,
        best_rate=math.nan,
        noise_batch_size=math.nan,
        num_examples=1000,
        population_size=1000,
        estimates=estimates,
    )
    stored = json.loads(json.dumps(dataclasses.asdict(constants)).replace("NaN", '"nan"'))
    (root / "mse" / "predictions").mkdir(parents=True)
    (root / "mse" / "predictions" / "constants.json").write_text(json.dumps(stored))
    found = CliRunner().invoke(analysis, ["stability_map", str(root), "--out", str(tmp_path)])
    assert found.exit_code == 0, found.output
    assert not (tmp_path / "cells.csv").exists()
    committed = read_table(ROOT / "paper_figures" / "data" / "stability_map" / "boundary.csv")
    expected = committed[committed["map"] == "mse"].set_index("batch_size")
    boundary = read_table(tmp_path / "boundary.csv").set_index("batch_size")
    for column in ("lr_max", "lr_max_low", "lr_max_high", "num_seeds", "lyapunov"):
        assert boundary[column].tolist() == expected[column].tolist()
    assert boundary.loc["1000", "num_seeds"] == 1
    assert boundary.loc["1", "lower"] == pytest.approx(2 / 400)
    assert boundary.loc["1000", "lower"] == pytest.approx(2 / 20)
    header = read_header(tmp_path / "boundary.csv")
    assert header["seeds"].split(", ")[:2] == ["0", "1"]  # those of the cells
    assert header["command"].count("python -m analysis") == 2


def test_the_experiment_asks_for_the_default_map_and_for_precision(tmp_path):
    start = tmp_path / "checkpoint.pt"
    start.write_bytes(b"any")
    maps = stability_map.maps("full", {"mse": start, "cross_entropy": start})
    assert set(maps) == {"unit", "raw", "mse", "cross_entropy"}
    for name, config in maps.items():
        assert len(config.batch_sizes) >= 6
        assert config.num_seeds >= 5
        assert config.precision == 1.25
        assert (config.start is not None) == (name in ("mse", "cross_entropy"))
    assert maps["raw"].problem == replace(maps["unit"].problem, pixel_scale="raw")
    assert maps["unit"].horizon == Horizon(epochs=1)
    assert set(stability_map.maps("quick", {})) == {"unit", "raw"}
