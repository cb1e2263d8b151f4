"""The benchmarks run, in small; what they measure is for their own reports."""

import subprocess
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from noisescale import (
    Horizon,
    NoiseScaleMonitor,
    ProblemConfig,
    TrainConfig,
    build_problem,
    train,
)
from noisescale.problems.problem import as_examples
from noisescale.studies.stability_map.run import SweepOptions

for peer in ("backpack", "curvlinops", "opacus", "pyhessian"):
    pytest.importorskip(peer)

from experiments.benchmarks import curvature, monitor, monitor_sizes, noise, startup, sweep
from experiments.resources import Deadline, LeftOut

pytestmark = pytest.mark.peers


@pytest.fixture
def digits():
    """Anew for each test: the monitor's steps train its model."""
    return build_problem(ProblemConfig(dataset="digits", width=16))


def test_curvature_solvers_agree_and_are_counted(digits):
    params = {name: param.detach() for name, param in digits.model.named_parameters()}
    examples = as_examples(digits.train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyHessian's backward(create_graph=True)
        found = curvature.compare(digits, params, examples, rounds=1)
    solvers = found["solvers"]
    assert solvers["ours"]["relative_error"] < 1e-5
    assert solvers["curvlinops + eigsh"]["relative_error"] < 1e-3
    assert solvers["ours"]["num_matvecs"] < solvers["curvlinops + eigsh"]["num_matvecs"]
    assert solvers["ours"]["ours/theirs"] == 1
    ratios = curvature.products(digits, params, examples, rounds=1)["in_gradients"]
    assert all(ratio > 0 for ratio in ratios.values())


def test_closed_forms_are_timed_against_the_softmax(monkeypatch):
    monkeypatch.setattr(curvature, "VOCABULARIES", (256,))
    (row,) = curvature.vocabulary("cpu", rounds=1)
    assert row["relative_difference"] < 1e-5
    assert row["ratio"] == row["seconds"]["closed form"] / row["seconds"]["softmax"]


def test_how_near_the_smallest_eigenvalue_is_after_so_many_products(digits, monkeypatch):
    monkeypatch.setattr(curvature, "APPROACH_EXAMPLES", 100)
    params = {name: param.detach() for name, param in digits.model.named_parameters()}
    rows = curvature.approach(digits, params)
    errors = [row["relative_error"] for row in rows]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-6 > errors[-1] >= 0
    # a value is within its residual, and nearer by far where others lie apart
    assert all(row["relative_error"] <= row["relative_residual"] for row in rows)


def test_warm_starts_are_compared_with_cold_ones(digits):
    config = TrainConfig(max_steps=20)
    along = [found.params for found in train(digits, config, checkpoint_steps=(10, 20))]
    found = curvature.warm_starts(digits, along, as_examples(digits.train), seeds=1)
    assert len(found["cold"]) == len(found["warm"]) == len(along) - 1
    assert found["ratio"] == sum(found["warm"]) / sum(found["cold"])


def test_the_monitor_and_its_peer_see_the_same_step(digits):
    found = monitor.measure(digits, 4, 8, rounds=3, num_examples=100)
    assert 0 < found["looking"] < 1
    assert 0 < found["looking_differences"] < 1
    peer = monitor.Differences(digits.model)
    parts = [torch.arange(8), torch.arange(8, 16)]
    digits.model.zero_grad()
    monitor.Step(digits, parts, peer.look)()
    alone = []
    for part in parts:
        losses = digits.loss(digits.model(digits.train.inputs[part]), digits.train.targets[part])
        gradients = torch.autograd.grad(losses.mean() / 2, list(digits.model.parameters()))
        alone.append(sum(float(one.square().sum()) for one in gradients))
    assert [float(one) for one in peer.squares] == pytest.approx(alone, rel=1e-4)


def test_a_start_is_measured_in_seconds_of_its_own_process():
    idle = startup.cpu_seconds("-c", "import time; time.sleep(0.5)")
    busy = startup.cpu_seconds("-c", "import time\nwhile time.process_time() < 0.5: pass")
    assert idle < 0.5 <= busy
    with pytest.raises(subprocess.CalledProcessError):
        startup.cpu_seconds("-c", "raise SystemExit(3)")


@pytest.mark.slow
def test_a_command_is_timed_or_ended_where_its_time_is_up(monkeypatch):
    small = [
        "--dataset",
        "digits",
        "--num-train",
        "60",
        "--width",
        "4",
        "--bs",
        "4",
        "--steps",
        "6",
    ]
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess,
        "Popen",
        lambda arguments, **kwargs: popen([*arguments, *small, "--seeds", "1"], **kwargs),
    )
    found = sweep.default_command("sweep-lr")
    assert found["runs"] > 0 < found["seconds"] < 300
    with pytest.raises(LeftOut, match="longer than the 0 s left for it"):
        sweep.default_command("sweep-lr", Deadline(0.0))


@pytest.mark.slow
def test_starts_are_compared_with_the_bare_processes_they_contain():
    found = startup.measure(rounds=1)
    assert all(seconds > 0 for seconds in found["cpu_seconds"].values())
    assert set(found["added"]) == set(startup.STARTS)


@pytest.mark.slow
def test_all_ways_to_per_example_norms_run_on_an_mlp(digits):
    case = noise.Case(digits, many=64, few=16, large=(16, 64), small=(4, 16))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own
        found = noise.compare(case, rounds=1, console=Console(quiet=True))
    assert found["not_covered"] == {}
    assert len(found["rates"]) == 8
    assert found["rates"]["forward and backward"]["in_gradients"] == 1
    assert all(row["examples_per_second"] > 0 for row in found["rates"].values())


@pytest.mark.slow
def test_the_sweep_is_counted_and_compared(digits, monkeypatch):
    monkeypatch.setattr(sweep, "LocalProcesses", lambda count: ThreadPoolExecutor(1))
    options = SweepOptions(predict=False)
    small = replace(
        sweep.GRID,
        problem=ProblemConfig(dataset="digits", num_train=100, width=4),
        batch_sizes=(10,),
    )
    small = replace(small, num_seeds=2, horizon=Horizon(steps=5))
    found = sweep.bisection(small, options)
    assert found["runs_of_grid"] == found["rates"] * 2
    assert found["runs"] < found["runs_of_grid"] / 2
    assert max(found["grid_steps_apart"]) <= 1
    timed = sweep.processes(replace(small, num_lr=2), options, rounds=1)
    assert timed["cells"] == 4
    assert timed["speed_up"] > 0
    row = sweep.replicas(digits, 4, steps=3, rounds=1)
    assert row["replicas/eager"] == pytest.approx(
        row["updates_per_second"]["replicas"] / row["updates_per_second"]["eager"]
    )


def test_the_monitors_share_of_a_step_is_that_of_two_programs_in_turn():
    def work(count):
        return lambda: sum(range(count))

    found = monitor_sizes.overhead(work(400_000), work(800_000), rounds=9)
    assert found["seconds"] > 0
    assert found["overhead"] == pytest.approx(1, abs=0.5)
    assert found["mean_overhead"] == pytest.approx(1, abs=0.5)


def test_the_monitors_watch_the_steps_they_are_timed_in(digits):
    seen = NoiseScaleMonitor(digits.model)
    monitor_sizes.accumulating(digits, (4, 8), seen)()
    assert seen.num_updates == 1
    assert all(parameter.grad is None for parameter in digits.model.parameters())
