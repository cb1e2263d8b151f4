"""Sweeps: what is searched, run, kept, resumed, shared and refused, on the smallest of problems."""

import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from noisescale.errors import (
    Interrupted,
    MeasurementError,
    NoisescaleError,
    RunFolderError,
    SettingError,
)
from noisescale.problems.build import build_problem
from noisescale.problems.config import ProblemConfig
from noisescale.problems.factory import factory_config
from noisescale.problems.models import LOSSES, chance_loss
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.folder import INDEPENDENT, SHARED, ordered
from noisescale.studies.jobs.local import LocalProcesses
from noisescale.studies.jobs.options import StudyOptions
from noisescale.studies.stability_map import cell_run, run as engine
from noisescale.studies.stability_map.cell_run import run_cell
from noisescale.studies.stability_map.config import Horizon, SweepConfig
from noisescale.studies.stability_map.pictures import draw_pictures
from noisescale.studies.stability_map.predictions import with_rates
from noisescale.studies.stability_map.run import SweepOptions, run_sweep
from noisescale.studies.stability_map.search import from_guess, scan_and_bisect
from noisescale.studies.stability_map.tables import cell_row
from noisescale.training.config import TrainConfig
from noisescale.training.evaluation import evaluate
from noisescale.training.records.names import file_digest
from tests.helpers.executors import Here
from tests.helpers.processes import environment
from tests.helpers.sweeps import CONFIG, PROBLEM, QUIET


@pytest.fixture
def serial(finished_sweep):
    """A whole sweep in one thread, to be read: its folder, result and executor."""
    return finished_sweep


def answer(search, unstable):
    """What a search asks for when index i is unstable iff `unstable(i)`, and in how many rounds."""
    asked, rounds = {}, 0
    try:
        indices = next(search)
        while True:
            rounds += 1
            asked |= {index: unstable(index) for index in indices}
            indices = search.send([asked[index] for index in indices])
    except StopIteration:
        return asked, rounds


@pytest.mark.parametrize("edge", [-1, 0, 1, 5, 17, 30, 39, 40])
@pytest.mark.parametrize("stride", [1, 6, 40])
def test_scan_and_bisection_end_at_neighbours(edge, stride):
    asked, _ = answer(scan_and_bisect(40, stride), lambda index: index > edge)
    assert edge < 0 or edge >= 40 or asked[edge] is False
    assert edge + 1 >= 40 or asked[edge + 1]
    assert len(asked) <= 40 // stride + 2 + math.ceil(math.log2(stride + 1))


@pytest.mark.parametrize("guess", [-1, 0, 12, 38, 39])
@pytest.mark.parametrize("edge", [-1, 0, 10, 13, 25, 38, 39])
def test_a_guess_is_followed_to_the_edge(guess, edge):
    asked, _ = answer(from_guess(40, guess), lambda index: index > edge)
    assert edge < 0 or asked[edge] is False
    assert edge + 1 >= 40 or asked[edge + 1]
    assert len(asked) <= 2 + 2 * math.ceil(math.log2(abs(edge - guess) + 1))
    assert all(0 <= index < 40 for index in asked)


def test_an_outcome_that_is_not_monotone_is_bracketed_on_both_sides():
    asked, _ = answer(from_guess(40, 20), lambda index: index > 22 or index == 20)
    unstable = [index for index, outcome in asked.items() if outcome]
    stable = [index for index, outcome in asked.items() if not outcome]
    assert min(unstable) == 20
    assert max(stable) == 22
    assert 19 in stable
    assert 23 in unstable


def test_a_search_ends_where_a_cell_fails():
    search = from_guess(40, 20)
    next(search)
    assert search.send([False, False]) == [22]
    with pytest.raises(StopIteration):
        search.send([None])


def test_bisection_finds_the_edge_of_the_whole_grid_with_a_fraction_of_its_runs(serial, tmp_path):
    _, bisected, executor = serial
    count = len(CONFIG.learning_rates)
    whole = Here()
    grid = run_sweep(
        replace(CONFIG, num_lr=count), tmp_path / "grid", executor=whole, options=QUIET
    )
    assert grid.config.learning_rates == CONFIG.learning_rates
    assert len(whole.cells) == 2 * 2 * count
    assert len(executor.cells) <= 0.8 * len(whole.cells)  # of a grid of so few; see the benchmark
    step = math.log(CONFIG.learning_rates[1] / CONFIG.learning_rates[0])
    for ours, theirs in zip(bisected.boundary["lr_max"], grid.boundary["lr_max"], strict=True):
        assert abs(math.log(ours / theirs)) <= step
    both = grid.cells.merge(bisected.cells, on=["batch_size", "learning_rate", "seed"])
    assert len(both) == len(bisected.cells)
    assert (both["final_loss_x"] == both["final_loss_y"]).all()


def test_the_files_of_a_sweep(serial):
    out, result, executor = serial
    cells = pd.read_csv(out / "cells.csv", keep_default_na=False, na_values=["nan"])
    assert len(cells) == len(executor.cells) == result.summary["num_cells"]
    assert set(cells["label"]) >= {"diverged"}
    assert (cells["error"] == "").all()
    assert cells["unstable"].isin([0, 1]).all()
    ordered = cells.sort_values(["batch_size", "learning_rate", "seed"])
    assert ordered.index.tolist() == list(range(len(cells)))
    boundary = pd.read_csv(out / "boundary.csv")
    assert boundary["batch_size"].tolist() == [4, 50]
    assert (boundary["lr_max_low"] < boundary["lr_max"]).all()
    assert (boundary["lr_max"] < boundary["lr_max_high"]).all()
    summary = json.loads((out / "summary.json").read_text(), parse_constant=pytest.fail)
    assert sum(summary["labels"].values()) == len(cells)
    assert summary["failures"] == []
    assert (out / "map.png").read_bytes()[:4] == b"\x89PNG"
    folders = list((out / "cells").iterdir())
    assert len(folders) == len(cells)
    for folder in folders:
        assert {"config.json", "losses.csv", "summary.json"} <= {
            file.name for file in folder.iterdir()
        }
        losses = pd.read_csv(folder / "losses.csv")
        record = json.loads((folder / "summary.json").read_text())
        assert losses["step"].iloc[0] == 0
        assert losses["step"].iloc[-1] == record["steps"]


def test_the_map_is_drawn_from_the_folder(serial, tmp_path):
    out, _, _ = serial
    (picture,) = draw_pictures(out, out=tmp_path / "new")
    assert picture == tmp_path / "new" / "map.png"
    assert picture.read_bytes() == (out / "map.png").read_bytes()
    for name in ("cells.csv", "boundary.csv"):  # the tables alone will do
        shutil.copy(out / name, tmp_path)
    assert draw_pictures(tmp_path, format="svg") == [tmp_path / "map.svg"]
    assert draw_pictures(tmp_path / "empty") == []


def test_a_sweep_may_leave_its_picture_out(tmp_path):
    """By the options of any study, which will do: it is of momentum, and nothing is predicted."""
    training = TrainConfig(momentum=0.9)
    config = replace(CONFIG, batch_sizes=(50,), num_seeds=1, training=training)
    options = StudyOptions(pictures=False, notes=("a note",))
    found = run_sweep(config, tmp_path / "sweep", executor=Here(), options=options)
    assert found.summary["notes"] == ["a note"]
    assert (tmp_path / "sweep" / "summary.json").exists()
    assert not (tmp_path / "sweep" / "map.png").exists()


def test_a_cell_is_the_run_that_train_makes(serial):
    from noisescale.training.trainer import train

    _, result, _ = serial
    row = result.cells[(result.cells["seed"] == 1) & (result.cells["label"] != "diverged")].iloc[0]
    problem = build_problem(PROBLEM, seed=1)
    config = TrainConfig(
        batch_size=int(row["batch_size"]),
        learning_rate=row["learning_rate"],
        seed=1,
        epochs=6,
        max_steps=12,
    )
    *_, last = train(problem, ordered(config, INDEPENDENT))
    for name, param in problem.model.named_parameters():
        param.data.copy_(last.params[name])
    assert evaluate(problem.model, problem.loss, problem.train).loss == pytest.approx(
        row["final_loss"]
    )
    assert evaluate(problem.model, problem.loss, problem.test).accuracy == row["test_accuracy"]
    assert row["start_loss"] != row["final_loss"]


def test_only_missing_cells_are_run_and_more_may_be_asked_for(serial, tmp_path, monkeypatch):
    _, result, executor = serial
    out = tmp_path / "sweep"
    run_sweep(replace(CONFIG, num_seeds=1), out, executor=Here(), options=QUIET)
    trained = []
    original = engine.run_cell
    monkeypatch.setattr("noisescale.studies.jobs.short_run.Training", _counting(trained))
    again = run_sweep(CONFIG, out, executor=Here(), options=QUIET)
    assert original is engine.run_cell
    assert len(trained) == sum(cell.training.seed == 1 for cell in executor.cells)
    pd.testing.assert_frame_equal(again.cells, result.cells)
    pd.testing.assert_frame_equal(again.boundary, result.boundary)


def _counting(made):
    from noisescale.training.trainer import Training

    def make(problem, config):
        made.append(config)
        return Training(problem, config)

    return make


def test_a_cell_that_raises_is_recorded_and_the_sweep_goes_on(tmp_path):
    def fail(cell):
        return cell.training.batch_size == 4 and cell.training.seed == 1

    result = run_sweep(CONFIG, tmp_path / "sweep", executor=Here(fail), options=QUIET)
    failed = result.cells[result.cells["error"] != ""]
    assert set(failed["batch_size"]) == {4}
    assert set(failed["error"]) == {"MemoryError: no room for this one"}
    assert failed["final_loss"].isna().all()
    assert len(result.summary["failures"]) == len(failed)
    assert result.boundary["num_seeds"].tolist() == [1, 2]
    repaired = run_sweep(CONFIG, tmp_path / "sweep", executor=Here(), options=QUIET)
    assert repaired.summary["failures"] == []
    assert repaired.boundary["num_seeds"].tolist() == [2, 2]


def test_all_cells_may_fail(tmp_path):
    result = run_sweep(CONFIG, tmp_path / "sweep", executor=Here(lambda cell: True), options=QUIET)
    assert result.boundary["lr_max"].isna().all()
    assert (tmp_path / "sweep" / "summary.json").exists()


def test_other_settings_do_not_mix(serial, tmp_path):
    out, _, _ = serial
    for other, named in (
        (replace(CONFIG, horizon=Horizon(steps=13)), "horizon.steps is 12 there, 13 here"),
        (replace(CONFIG, problem=replace(PROBLEM, width=5)), "problem.width is 4 there, 5 here"),
        (
            replace(CONFIG, training=TrainConfig(momentum=0.9)),
            "training.momentum is 0.0 there, 0.9 here",
        ),
    ):
        with pytest.raises(RunFolderError, match=named):
            run_sweep(other, out, executor=Here(), options=QUIET)
    strange = tmp_path / "strange"
    strange.mkdir()
    (strange / "thesis.tex").write_text("")
    with pytest.raises(RunFolderError, match=r"holds thesis\.tex but no sweep\.json"):
        run_sweep(CONFIG, strange, executor=Here(), options=QUIET)
    assert [entry.name for entry in strange.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_sizes": ()}, "empty grid"),
        ({"num_lr": 0}, "empty grid"),
        ({"num_seeds": 0}, "empty grid"),
        ({"lr_min": 1.0, "lr_max": 0.1}, "exchange --lr-min and --lr-max"),
        ({"lr_min": -1.0}, "learning rate"),
        ({"lr_max": math.inf}, "learning rate"),
        ({"num_lr": 1}, "one learning rate between two ends"),
        ({"num_lr": 1, "lr_max": None}, "one learning rate, and not which"),
        ({"factor": 1.0}, "factor"),
        ({"precision": 0.9}, "precision"),
        ({"precision": 1.2, "max_seeds": 1}, "fewer seeds"),
        ({"batch_sizes": ("adaptive",)}, "adaptive"),
        ({"batch_sizes": (4, 4)}, "each once"),
        ({"problem": replace(PROBLEM, norm="batch"), "batch_sizes": (1, 4)}, "batch norm"),
    ],
)
def test_a_grid_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(SettingError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.parametrize(
    "lengths", [{}, {"epochs": 1, "steps": 2}, {"steps": 0}, {"examples": 1.5}]
)
def test_a_horizon_is_one_positive_number(lengths):
    with pytest.raises(SettingError):
        Horizon(**lengths)


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(SettingError, match="there are 100 training examples"):
        run_sweep(
            replace(CONFIG, batch_sizes=(4, 101)),
            tmp_path / "sweep",
            executor=Here(),
            options=QUIET,
        )
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("horizon", "batch_size", "steps"),
    [
        (Horizon(epochs=2), 30, 8),  # three batches of 30 and one of 10
        (Horizon(steps=7), 30, 7),
        (Horizon(examples=100), 30, 4),
        (Horizon(steps=3), "full", 3),
    ],
)
def test_horizons(tmp_path, horizon, batch_size, steps):
    config = replace(CONFIG, horizon=horizon, batch_sizes=(batch_size,))
    training = config.run(batch_size, 0.01, 0, num_examples=100)
    summary = run_cell(Cell(path=tmp_path / "cell", problem=PROBLEM, training=training)).summary
    assert summary["steps"] == steps


def test_precision_adds_seeds_until_the_interval_is_narrow(tmp_path):
    config = replace(CONFIG, batch_sizes=(4,), factor=1.2, precision=1.3, max_seeds=9)
    result = run_sweep(config, tmp_path / "sweep", executor=Here(), options=QUIET)
    (row,) = result.boundary.to_dict("records")
    assert row["num_seeds"] > 2
    assert row["num_seeds"] == 9 or row["lr_max_high"] <= 1.3 * row["lr_max_low"]


def test_any_executor_gives_the_serial_table(serial, tmp_path):
    _, result, _ = serial
    with ThreadPoolExecutor(2) as threads:
        found = run_sweep(CONFIG, tmp_path / "threads", executor=threads, options=QUIET)
    pd.testing.assert_frame_equal(found.cells, result.cells)
    pd.testing.assert_frame_equal(found.boundary, result.boundary)


def test_two_sweeps_into_one_folder_share_the_work(serial, tmp_path, monkeypatch):
    _, result, executor = serial
    made = []
    monkeypatch.setattr("noisescale.studies.jobs.short_run.Training", _counting(made))
    found = []
    work = [
        threading.Thread(
            target=lambda: found.append(
                run_sweep(CONFIG, tmp_path / "both", executor=Here(), options=QUIET)
            )
        )
        for _ in range(2)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert len(made) == len(executor.cells)
    for one in found:
        pd.testing.assert_frame_equal(one.cells, result.cells)


def test_a_signal_stops_the_sweep_and_keeps_what_is_finished(tmp_path):
    class Slow(Here):
        def submit(self, function, /, *args, **kwargs):
            if len(self.cells) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().submit(function, *args, **kwargs)

    with pytest.raises(Interrupted, match="finished and kept") as stopped:
        run_sweep(CONFIG, tmp_path / "sweep", executor=Slow(), options=QUIET)
    assert stopped.value.exit_code == 128 + signal.SIGTERM
    assert len(list((tmp_path / "sweep" / "cells").glob("*/summary.json"))) >= 3
    assert not (tmp_path / "sweep" / "summary.json").exists()


def _die_or_answer(path):
    """Ends its process the first two times."""
    lives = path.read_text().count("x") if path.exists() else 0
    with path.open("a") as file:
        file.write("x")
    if lives < 2:
        os._exit(1)
    return "alive"


def _die():
    time.sleep(0.2)
    os._exit(1)


@pytest.mark.processes
@pytest.mark.slow
def test_a_study_starts_workers_of_a_data_loader_as_its_parent_does():
    """Spawned as itself is, each would import torch in every pass over the data."""
    pool = LocalProcesses(1)
    try:
        method = pool.submit(multiprocessing.get_start_method).result(timeout=120)
    finally:
        pool.shutdown()
    assert method == multiprocessing.get_start_method()


@pytest.mark.processes
@pytest.mark.slow
def test_a_process_that_dies_is_replaced_and_no_other_task_suffers(tmp_path):
    pool = LocalProcesses(2)
    try:
        good = [pool.submit(len, "a" * count) for count in range(3)]
        weak, bad = pool.submit(_die_or_answer, tmp_path / "lives"), pool.submit(_die)
        good += [pool.submit(len, "a" * count) for count in range(3, 6)]
        assert [future.result(timeout=120) for future in good] == list(range(6))
        assert weak.result(timeout=120) == "alive"
        with pytest.raises(RuntimeError, match="died in each of 3 attempts"):
            bad.result(timeout=120)
        assert pool.submit(len, "abc").result(timeout=120) == 3
        last = pool.submit(len, "abcd")
    finally:
        pool.shutdown()
    assert last.result(timeout=0) == 4


def _listed(*options):
    """Process numbers that ps gives for these options."""
    command = ["ps", "-o", "pid=", *options]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()


@pytest.mark.processes
@pytest.mark.slow
def test_a_killed_sweep_goes_on_and_its_table_is_the_serial_one(serial, tmp_path):
    reference, *_ = serial
    out = tmp_path / "sweep"
    command = [sys.executable, "-m", "tests.helpers.sweeps", str(out)]
    for cells in (2, 8):  # killed early, and in the midst of the search
        running = subprocess.Popen(command, env=environment())
        while len(list(out.glob("cells/*/summary.json"))) < cells and running.poll() is None:
            time.sleep(0.005)
        workers = _listed("--ppid", str(running.pid))
        workers += [each for one in workers for each in _listed("--ppid", one)]  # of a fork server
        running.send_signal(signal.SIGKILL)
        running.wait()
        end = time.monotonic() + 30
        while workers and _listed("-p", ",".join(workers)):  # they end with it
            assert time.monotonic() < end
            time.sleep(0.05)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/summary.json")}
    subprocess.run(command, env=environment(), check=True, timeout=300)
    assert all(path.stat().st_mtime_ns == made for path, made in finished.items())
    assert (out / "cells.csv").read_bytes() == (reference / "cells.csv").read_bytes()
    assert (out / "boundary.csv").read_bytes() == (reference / "boundary.csv").read_bytes()
    assert not list(out.rglob("*.tmp"))


def _summary(**changes):
    numbers = {"start_loss": 1e-4, "largest_loss": 0.5, "chance_loss": 2.3, "largest_share": 0.1}
    scores = {
        "train": {"loss": 2e-4},
        "test": {"accuracy": 0.9},
        "diverged_at_step": None,
        "steps": 10,
    }
    return {"batch_size": 4, "learning_rate": 0.1, "seed": 0, **numbers, **scores, **changes}


def test_what_counts_as_unstable_depends_on_where_the_runs_start():
    assert cell_row(_summary(), from_checkpoint=True)["unstable"] == 1  # it left, and came back
    assert cell_row(_summary(), from_checkpoint=False)["unstable"] == 0
    calm = _summary(largest_loss=9e-4)
    assert cell_row(calm, from_checkpoint=True)["unstable"] == 0
    lost = _summary(largest_loss=None, train={"loss": None})
    row = cell_row(lost, from_checkpoint=False)
    assert (row["unstable"], row["label"], row["max_loss"]) == (1, "diverged", math.inf)


def test_a_loss_that_is_not_finite_is_the_largest(tmp_path):
    training = TrainConfig(batch_size=4, learning_rate=1e30, max_steps=12)
    summary = run_cell(Cell(path=tmp_path / "cell", problem=PROBLEM, training=training)).summary
    assert summary["diverged_at_step"] is not None
    assert summary["largest_loss"] is None
    assert "not finite" in summary["largest_loss_null_because"]


def test_the_loss_is_looked_at_evenly_and_at_log_spaced_steps(tmp_path):
    training = TrainConfig(batch_size=4, learning_rate=0.01, epochs=20, max_steps=200)
    threads = torch.get_num_threads()
    summary = run_cell(Cell(path=tmp_path / "cell", problem=PROBLEM, training=training)).summary
    assert summary["environment"]["threads"] == 1
    assert torch.get_num_threads() == threads
    steps = set(pd.read_csv(tmp_path / "cell" / "losses.csv")["step"])
    assert {0, 1, 2, 3, 4, 6, 7, 8, *range(4, 201, 4)} <= steps
    assert len(steps) < 80


def test_looks_on_fewer_examples_are_told_in_the_loss_of_more(tmp_path, monkeypatch):
    """Start and end are of the same ones; what lies between, as a multiple of its own start."""
    monkeypatch.setattr(cell_run, "LOOKED_AT", 10)
    training = TrainConfig(batch_size=10, learning_rate=5.0, max_steps=6)
    run = run_cell(Cell(path=tmp_path, problem=PROBLEM, training=training))
    problem = build_problem(PROBLEM, seed=training.seed)
    start = evaluate(problem.model, problem.loss, problem.train)
    assert run.summary["num_evaluated"] == 10
    assert run.summary["start_loss"] == pytest.approx(start.loss)
    seen = run.losses["loss"]
    assert seen[0] != pytest.approx(start.loss, rel=1e-3)
    assert run.summary["largest_loss"] == pytest.approx(start.loss * seen.max() / seen[0])


def test_chance_is_the_loss_of_the_best_constant():
    targets = torch.tensor([0, 0, 0, 1, 2, 2])
    shares = torch.tensor([0.5, 1 / 6, 1 / 3])
    for name, best in (("cross_entropy", shares.log()), ("mse", shares)):
        losses = LOSSES[name](best.expand(6, 3), targets)
        assert chance_loss(name, targets) == pytest.approx(losses.mean().item())


def test_tables_keep_what_other_sweeps_have_finished_in_the_folder(serial, tmp_path):
    out = tmp_path / "sweep"
    run_sweep(replace(CONFIG, batch_sizes=(4,)), out, executor=Here(), options=QUIET)
    found = run_sweep(replace(CONFIG, batch_sizes=(50,)), out, executor=Here(), options=QUIET)
    pd.testing.assert_frame_equal(found.cells, serial[1].cells)
    pd.testing.assert_frame_equal(found.boundary, serial[1].boundary)


def test_a_cell_that_failed_here_counts_once_another_sweep_has_finished_it(
    serial, tmp_path, monkeypatch
):
    out = tmp_path / "sweep"
    shutil.copytree(serial[0], out)
    monkeypatch.setattr(engine, "stored_cell", lambda cell: None)  # not yet when it is asked for
    failing = Here(lambda cell: cell.training.batch_size == 4)
    cells = run_sweep(CONFIG, out, executor=failing, options=QUIET).cells
    finished = cells[cells["error"] == ""].reset_index(drop=True)
    pd.testing.assert_frame_equal(finished, serial[1].cells)


def test_a_finished_sweep_is_shown_with_each_cell_read_once(serial, tmp_path, monkeypatch):
    out = tmp_path / "sweep"
    shutil.copytree(serial[0], out)
    monkeypatch.setattr(engine, "read_cell", lambda path: pytest.fail(f"{path} is read again"))
    found = run_sweep(CONFIG, out, executor=Here(), options=QUIET)
    pd.testing.assert_frame_equal(found.cells, serial[1].cells)


def test_a_damaged_cell_of_another_sweep_is_named_and_left_out(tmp_path):
    out = tmp_path / "sweep"
    first = run_sweep(replace(CONFIG, batch_sizes=(4,)), out, executor=Here(), options=QUIET)
    victim = next((out / "cells").glob("*bs4*/summary.json"))
    victim.write_text('{"batch_size": 4, "steps": 1, "train": {}, "test": {}, "environment": {}}')
    found = run_sweep(replace(CONFIG, batch_sizes=(50,)), out, executor=Here(), options=QUIET)
    assert (found.cells["batch_size"] == 4).sum() == len(first.cells) - 1
    assert "lacks chance_loss" in found.summary["failures"][0]


@pytest.mark.pictures
def test_all_cells_of_one_batch_size_may_fail(tmp_path):
    failing = Here(lambda cell: cell.training.batch_size == 4)
    found = run_sweep(CONFIG, tmp_path / "sweep", executor=failing, options=QUIET)
    assert found.boundary["num_seeds"].tolist() == [0, 2]
    assert (tmp_path / "sweep" / "map.png").exists()


def test_predictions_are_of_batches_without_replacement_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("noisescale.measure.stability.MOST_STEPS", 30)
    monkeypatch.setattr("noisescale.measure.stability.FEWEST_STEPS", 30)
    config = replace(CONFIG, batch_sizes=(4, "full"))
    options = SweepOptions()
    found = run_sweep(config, tmp_path / "sweep", executor=Here(), options=options)
    sharpness = found.summary["constants"]["sharpness"]
    whole = found.boundary.set_index("batch_size").loc["full"]
    for curve in ("upper", "lower", "gaussian", "wu"):
        assert whole[curve] == pytest.approx(2 / sharpness)
    assert whole["lyapunov"] == pytest.approx(2 / sharpness, rel=0.15)
    monkeypatch.setattr("noisescale.studies.stability_map.predictions.measure_stability", None)
    monkeypatch.setattr("noisescale.studies.stability_map.predictions.simulate_threshold", None)
    again = run_sweep(config, tmp_path / "sweep", executor=Here(), options=options)
    pd.testing.assert_frame_equal(again.boundary, found.boundary)
    (tmp_path / "sweep" / "predictions" / "constants.json").write_text('{"sharpness": 1}')
    damaged = run_sweep(config, tmp_path / "sweep", executor=Here(), options=options)
    assert "constants.json is damaged" in damaged.summary["failures"][0]
    assert "upper" not in damaged.boundary


def test_the_rates_that_are_not_given():
    free = replace(CONFIG, lr_min=None, lr_max=None)
    ends = [
        with_rates(replace(free, **given), sharpness=4.0)  # 2/λ = 0.5, nearest to 1
        for given in ({}, {"lr_min": 10.0}, {"lr_max": 10.0}, {"lr_min": 1.0, "lr_max": 2.0})
    ]
    assert [(one.lr_min, one.lr_max) for one in ends] == [
        (pytest.approx(1e-3), pytest.approx(100)),
        (10.0, pytest.approx(1e6)),
        (pytest.approx(1e-4), 10.0),
        (1.0, 2.0),
    ]
    adam = with_rates(replace(free, training=TrainConfig(optimizer="adam")), sharpness=None)
    assert (adam.lr_min, adam.lr_max) == (pytest.approx(1e-5), pytest.approx(1.0))


def test_an_executor_that_gives_up_is_one_message(tmp_path):
    class Gone(Here):
        def submit(self, function, /, *args, **kwargs):
            future = super().submit(function, *args, **kwargs)
            if len(self.cells) > 4:
                future = Future()
                future.cancel()
                future.set_running_or_notify_cancel()
            return future

    with pytest.raises(NoisescaleError, match="has cancelled its tasks"):
        run_sweep(CONFIG, tmp_path / "sweep", executor=Gone(), options=QUIET)


def test_the_guess_for_other_seeds_is_below_the_first_unstable_rate(tmp_path):
    """At re-entry, stable again above an unstable rate, the others start from the lower edge."""
    sweep = engine._Sweep(CONFIG, tmp_path, Here(), QUIET, 100, SHARED)
    rates = CONFIG.learning_rates
    outcomes = {0: 0, 3: 0, 5: 1, 7: 0, 9: 1}
    sweep.rows = {
        (4, rates[index], 0): {"unstable": outcome} for index, outcome in outcomes.items()
    }
    assert sweep._last_stable(4) == 3
    sweep.rows = {(4, rates[0], 0): {"unstable": 1}}
    assert sweep._last_stable(4) == -1


def test_a_start_that_config_and_options_disagree_about_is_refused(tmp_path):
    """Either alone would run from one place and be judged as from another."""
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(b"any")
    for config, options in (
        (replace(CONFIG, start=file_digest(file)), QUIET),
        (CONFIG, replace(QUIET, start=file)),
        (replace(CONFIG, start="0123"), replace(QUIET, start=file)),
    ):
        with pytest.raises(SettingError, match="the start of the config"):
            run_sweep(config, tmp_path / "sweep", executor=Here(), options=options)
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("optimizer", ["nesterov", "rmsprop", "muon"])
def test_every_optimizer_has_its_map(optimizer, tmp_path):
    if optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        pytest.skip("torch has no Muon")
    nesterov = TrainConfig(momentum=0.9, nesterov=True)
    training = nesterov if optimizer == "nesterov" else TrainConfig(optimizer=optimizer)
    config = replace(CONFIG, problem=replace(PROBLEM, depth=2), training=training)
    config = replace(config, lr_min=None, lr_max=None, factor=30, batch_sizes=(50,), num_seeds=1)
    result = run_sweep(config, tmp_path, executor=Here())
    assert result.summary["failures"] == []
    assert result.summary["constants"] is None  # the predictions are of plain SGD
    stored = json.loads((tmp_path / "sweep.json").read_text())["training"]
    assert stored == training.optimizer_settings()
    assert (result.config.lr_min == pytest.approx(1e-5)) == (optimizer != "nesterov")
    labels = result.cells.set_index("learning_rate")["label"]
    assert labels.iloc[0] != "diverged"


def test_the_sizes_of_ones_own_problem_are_told_in_its_units(tmp_path):
    file = tmp_path / "sequences.py"
    file.write_text(
        "import torch\n"
        "from noisescale import Examples, Problem\n"
        "def make():\n"
        "    inputs = torch.arange(32.0).reshape(16, 2) / 32\n"
        "    loss = lambda outputs, targets: (outputs - targets).square().mean(1)\n"
        "    train = Examples(inputs, inputs.flip(1))\n"
        "    return Problem(model=torch.nn.Linear(2, 2), loss=loss, train=train, units=12)\n"
    )
    own = factory_config(f"{file}:make")
    config = SweepConfig(
        problem=own,
        batch_sizes=(4, 8),
        lr_min=0.01,
        lr_max=0.1,
        num_lr=2,
        num_seeds=1,
        horizon=Horizon(epochs=2),
    )
    advice = run_sweep(config, tmp_path / "out", executor=Here(), options=QUIET).advice
    assert advice.units_per_example == 12
    assert "In tokens, 12 an example: " in " ".join(advice.block())


def test_models_of_many_outputs_need_no_rates(tmp_path):
    """Of them no edge is predicted, but λ takes products with the mean matrix alone."""
    text = ProblemConfig(
        dataset="markov", model="gpt", num_train=8, width=4, depth=1, heads=1, context=5
    )
    config = SweepConfig(
        problem=text, batch_sizes=(4,), factor=30, num_seeds=1, horizon=Horizon(steps=1)
    )
    result = run_sweep(config, tmp_path, executor=Here())
    assert result.summary["failures"] == []
    (note,) = [note for note in result.summary["notes"] if "no edge is predicted" in note]
    assert "gives 135 numbers for one example" in note  # 5 characters of 27
    model, inputs = (problem := build_problem(text, seed=0)).model.double(), problem.train.inputs
    names, params = zip(*model.named_parameters(), strict=True)

    def outputs(*values):
        return torch.func.functional_call(model, dict(zip(names, values, strict=True)), (inputs,))

    with sdpa_kernel(SDPBackend.MATH):
        jacobian = torch.autograd.functional.jacobian(outputs, params)
    rows = torch.cat([part.reshape(8 * 5, 27, -1) for part in jacobian], 2)  # (NT, C, P)
    chances = outputs(*params).detach().reshape(8 * 5, 27).softmax(1)
    curvature = torch.diag_embed(chances) - chances[:, :, None] * chances[:, None]
    matrix = torch.einsum("ncp,ncd,ndq->pq", rows, curvature, rows) / (8 * 5)
    low = math.log10(2 / float(torch.linalg.eigvalsh(matrix)[-1])) - 3
    assert math.log10(result.config.lr_min) == pytest.approx(round(low))
    again = run_sweep(config, tmp_path, executor=Here())
    assert again.config == result.config


def test_without_rates_a_curvature_that_cannot_be_measured_names_them(tmp_path, monkeypatch):
    def fail(problem, **options):
        raise MeasurementError("no curvature")

    for measure in ("measure_stability", "measure_sharpness"):
        monkeypatch.setattr(f"noisescale.studies.stability_map.predictions.{measure}", fail)
    free = replace(CONFIG, lr_min=None, lr_max=None)
    with pytest.raises(NoisescaleError, match=r"\(no curvature\): give --lr-min and --lr-max"):
        run_sweep(free, tmp_path / "free", executor=Here())
    one_end = run_sweep(
        replace(CONFIG, lr_max=None, num_lr=2), tmp_path / "one", executor=Here(), options=QUIET
    )
    assert one_end.config.lr_max == 1e5 * CONFIG.lr_min
    given = run_sweep(CONFIG, tmp_path / "given", executor=Here())
    assert "no curvature" in given.summary["failures"][0]
    assert given.summary["num_cells"] > 0


def test_a_finished_sweep_in_a_folder_that_cannot_be_written_is_shown(serial, monkeypatch):
    """Root may write anywhere, so that the answers of a read-only disk are given in its place."""

    def refused(*arguments, **options):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr("pathlib.Path.mkdir", refused)
    monkeypatch.setattr("filelock.FileLock.acquire", refused)
    for module in ("stability_map.results", "stability_map.predictions", "jobs.short_run"):
        monkeypatch.setattr(f"noisescale.studies.{module}.write_json", refused)
    monkeypatch.setattr("noisescale.studies.stability_map.results.write_table", refused)
    result = run_sweep(CONFIG, serial.out, executor=Here(), options=QUIET)
    pd.testing.assert_frame_equal(result.cells, serial.result.cells)
    assert result.summary["failures"] == []
