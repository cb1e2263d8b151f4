"""Sweeps on a real Dask cluster, and as vmapped replicas, against single runs."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from noisescale.cli import main
from noisescale.errors import SettingError
from noisescale.problems.config import ProblemConfig
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.dask import DaskExecutor
from noisescale.studies.jobs.local import LocalProcesses
from noisescale.studies.stability_map.cell_run import run_cell
from noisescale.studies.stability_map.replicas import (
    ReplicaExecutor,
    ReplicaTraining,
    alike,
    run_replicas,
)
from noisescale.studies.stability_map.run import run_sweep
from noisescale.training.config import TrainConfig
from noisescale.training.trainer import Training
from tests.helpers.problems import classification
from tests.helpers.processes import environment
from tests.helpers.sweeps import CONFIG, PROBLEM, QUIET

DASK = [sys.executable, "-m", "dask"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """The address of a scheduler with two worker processes, started as the README says."""
    folder = tmp_path_factory.mktemp("dask")
    file = folder / "scheduler.json"
    options = [
        "--host",
        "127.0.0.1",
        "--port",
        "0",
        "--no-dashboard",
        "--scheduler-file",
        str(file),
    ]
    with (folder / "log").open("w") as log:
        started = {"env": environment(), "stdout": log, "stderr": log, "cwd": folder}
        scheduler = subprocess.Popen([*DASK, "scheduler", *options], **started)
        try:
            _wait_for(file.exists)
            address = json.loads(file.read_text())["address"]
            workers = [
                *DASK,
                "worker",
                address,
                "--nworkers",
                "2",
                "--nthreads",
                "1",
                "--no-dashboard",
            ]
            worker = subprocess.Popen(workers, **started)
            try:
                _wait_for(lambda: len(_worker_processes(address)) == 2)
                yield address
            finally:
                worker.terminate()
                worker.wait(30)
        finally:
            scheduler.terminate()
            scheduler.wait(30)


def _wait_for(condition, *, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def _worker_processes(address):
    from distributed import Client

    with Client(address, timeout=30) as client:
        return list(client.run(os.getpid).values())


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning"
)  # sockets of a client that a killed worker leaves
def test_a_dask_sweep_whose_worker_is_killed_gives_the_serial_table(
    cluster, finished_sweep, tmp_path
):
    reference, serial, _ = finished_sweep
    victim, out = _worker_processes(cluster)[0], tmp_path / "dask"
    killed = []

    def kill():
        _wait_for(lambda: len(list(out.glob("cells/*/summary.json"))) >= 3)
        os.kill(victim, signal.SIGKILL)
        killed.append(len(list(out.glob("cells/*/summary.json"))))

    killer = threading.Thread(target=kill)
    killer.start()
    executor = DaskExecutor(cluster)
    found = run_sweep(CONFIG, out, executor=executor, options=QUIET)
    executor.shutdown()
    killer.join()
    assert killed[0] < len(serial.cells)  # it was mid-sweep
    pd.testing.assert_frame_equal(found.cells, serial.cells)
    assert (out / "cells.csv").read_bytes() == (reference / "cells.csv").read_bytes()
    assert (out / "boundary.csv").read_bytes() == (reference / "boundary.csv").read_bytes()


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_command_line_sweeps_on_a_cluster(cluster, tmp_path):
    arguments = "sweep-lr --dataset digits --num-train 100 --width 4 --bs 50"
    arguments += " --lr-min 1 --lr-max 1e3 --factor 10"
    arguments += f" --steps 5 --seeds 1 --no-predict --executor dask --scheduler {cluster} --json"
    found = CliRunner().invoke(main, [*arguments.split(), "--out", str(tmp_path / "sweep")])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["summary"]["num_cells"] >= 3


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_named_within_seconds():
    started = time.monotonic()
    with pytest.raises(SettingError, match=r"tcp://127\.0\.0\.1:9: no Dask scheduler answers"):
        DaskExecutor("tcp://127.0.0.1:9")
    assert time.monotonic() - started < 20
    with pytest.raises(SettingError, match="nonsense: no Dask scheduler answers"):
        DaskExecutor("nonsense")


def cell(folder, *, batch_size=10, rate=0.1, seed=0, problem=PROBLEM, **training):
    training = TrainConfig(
        batch_size=batch_size, learning_rate=rate, seed=seed, epochs=2, max_steps=13, **training
    )
    name = f"{batch_size}-{rate:g}-{seed}"
    return Cell(path=folder / name, problem=problem, training=training)


@pytest.mark.parametrize("training", [{}, {"momentum": 0.7, "weight_decay": 0.03}])
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
@pytest.mark.parametrize("model", ["mlp", pytest.param("cnn", marks=pytest.mark.slow)])
def test_replicas_are_single_runs(tmp_path, training, loss, model):
    """Different rates and seeds; 100 examples in tens, and a ragged end where B is 30."""
    problem = replace(PROBLEM, loss=loss, model=model, width=4, norm="layer")
    settings = [{"rate": rate, "seed": seed} for rate in (0.02, 0.05) for seed in (0, 3)]
    for batch_size in (10, 30):
        common = {"batch_size": batch_size, "problem": problem, **training}
        together = run_replicas([cell(tmp_path / "together", **common, **one) for one in settings])
        for one, run in zip(settings, together, strict=True):
            found = run.summary
            alone = run_cell(cell(tmp_path / "alone", **common, **one)).summary
            assert found["steps"] == alone["steps"]
            assert found["train"]["loss"] == pytest.approx(alone["train"]["loss"], rel=1e-4)
            assert found["start_loss"] == alone["start_loss"]
            for name in ("losses.csv",):
                ours, theirs = (
                    pd.read_csv(
                        tmp_path / kind / f"{batch_size}-{one['rate']:g}-{one['seed']}" / name
                    )
                    for kind in ("together", "alone")
                )
                pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4)


def test_replicas_in_double_precision_are_bit_for_bit_near():
    problems = [classification(seed=0, num_examples=20) for _ in range(3)]
    configs = [
        TrainConfig(batch_size=6, learning_rate=rate, seed=seed, epochs=3, momentum=0.5)
        for rate, seed in ((0.1, 0), (1.0, 1), (0.3, 2))
    ]
    replicas = ReplicaTraining(problems, configs)
    assert replicas.num_steps == 12
    while not replicas.finished:
        replicas.update()
    assert replicas.step == 12
    for replica, (problem, config) in enumerate(zip(problems, configs, strict=True)):
        single = Training(problem, config)
        for _ in single:
            pass
        found = dict(replicas.model(replica).named_parameters())
        for name, param in single.model.named_parameters():
            torch.testing.assert_close(found[name], param, rtol=1e-11, atol=1e-13)


def test_a_replica_that_diverges_leaves_the_others_alone(tmp_path):
    wild, tame = {"rate": 1e30, "seed": 1}, {"rate": 0.1, "seed": 1}
    replicas = run_replicas([cell(tmp_path / "together", **one) for one in (wild, tame)])
    together = [run.summary for run in replicas]
    alone = [run_cell(cell(tmp_path / "alone", **one)).summary for one in (wild, tame)]
    assert together[0]["diverged_at_step"] == alone[0]["diverged_at_step"]
    assert together[0]["steps"] == alone[0]["steps"]
    assert together[0]["train"]["loss"] is None
    assert together[1]["diverged_at_step"] is None
    assert together[1]["train"]["loss"] == pytest.approx(alone[1]["train"]["loss"], rel=1e-5)


def test_which_cells_run_together(tmp_path):
    base = cell(tmp_path)
    assert alike(base) == alike(cell(tmp_path, rate=3.0, seed=7))
    assert alike(base) != alike(cell(tmp_path, batch_size=11))
    assert alike(base) != alike(cell(tmp_path, momentum=0.5))
    assert alike(base) != alike(replace(base, start=tmp_path))
    assert alike(cell(tmp_path, optimizer="adam")) is None
    assert alike(cell(tmp_path, batch_size="full")) is None
    assert alike(cell(tmp_path, problem=replace(PROBLEM, norm="batch"))) is None


@pytest.mark.filterwarnings("ignore:.*stack_module_state")
@pytest.mark.slow
def test_a_sweep_of_replicas_is_that_of_single_runs(finished_sweep, tmp_path):
    serial = finished_sweep.result
    executor = ReplicaExecutor()
    found = run_sweep(CONFIG, tmp_path / "replicas", executor=executor, options=QUIET)
    executor.shutdown()
    assert found.cells["label"].tolist() == serial.cells["label"].tolist()
    assert found.boundary["lr_max"].tolist() == serial.boundary["lr_max"].tolist()
    again = ReplicaExecutor()
    same = run_sweep(CONFIG, tmp_path / "replicas", executor=again, options=QUIET)
    again.shutdown(cancel_futures=True)
    pd.testing.assert_frame_equal(same.cells, found.cells)


def test_cells_that_wait_together_are_one_program(tmp_path, monkeypatch):
    sizes = []

    def note(cells):
        sizes.append(len(cells))
        return run_replicas(cells)

    monkeypatch.setattr("noisescale.studies.stability_map.replicas.run_replicas", note)
    executor = ReplicaExecutor()
    hold = threading.Event()
    executor.submit(hold.wait, 30)
    futures = [
        executor.submit(run_cell, cell(tmp_path, rate=0.01 * (1 + index))) for index in range(18)
    ]
    other = executor.submit(run_cell, cell(tmp_path, batch_size=50))
    hold.set()
    assert all(future.result().summary["batch_size"] == 10 for future in futures)
    assert other.result().summary["batch_size"] == 50
    executor.shutdown()
    assert sizes == [16, 2]


def test_of_replicas_only_the_one_that_raises_fails(tmp_path):
    broken = cell(tmp_path, rate=0.2)
    broken.path.mkdir(parents=True)
    (broken.path / "config.json").write_text("{")
    executor = ReplicaExecutor()
    futures = [
        executor.submit(run_cell, one) for one in (cell(tmp_path), broken, cell(tmp_path, rate=0.3))
    ]
    errors = [future.exception() for future in futures]
    executor.shutdown()
    assert errors[0] is None
    assert "not valid JSON" in str(errors[1])
    assert errors[2] is None
    assert futures[2].result().summary["steps"] == 13


def test_a_closed_replica_executor_cancels_what_waits(tmp_path):
    executor = ReplicaExecutor()
    hold = threading.Event()
    running = executor.submit(hold.wait, 30)
    _wait_for(running.running)
    waiting = executor.submit(len, "abc")
    executor.shutdown(wait=False, cancel_futures=True)
    hold.set()
    assert waiting.cancelled()
    assert running.result() is True


@pytest.mark.gpu
def test_compiled_replicas_on_a_gpu_are_single_runs(tmp_path):
    problem = ProblemConfig(dataset="digits", width=16)
    common = {"problem": problem, "batch_size": 16}
    settings = [{"rate": rate, "seed": seed} for rate in (0.02, 0.3) for seed in (0, 3)]
    cells = [replace(cell(tmp_path / "gpu", **common, **one), device="cuda") for one in settings]
    for one, found in zip(settings, run_replicas(cells), strict=True):
        alone = run_cell(cell(tmp_path / "cpu", **common, **one))
        expected = pytest.approx(alone.summary["train"]["loss"], rel=1e-3)
        assert found.summary["train"]["loss"] == expected


def test_without_a_task_no_process_is_started(monkeypatch):
    """As where a study is finished: a fork server would import torch for nothing."""
    monkeypatch.setattr("noisescale.studies.jobs.local.start_context", None)
    for cancel in (False, True):
        LocalProcesses(2).shutdown(cancel_futures=cancel)
