"""Several processes over gloo measure what one does."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import multiprocessing

from noisescale.measure.distributed import Share, _served, process_group, rank_and_size
from noisescale.measure.gradients.moments import gradient_moments
from noisescale.measure.noise import measure_noise
from tests.helpers.command_line import SMALL, run
from tests.helpers.models import PROBLEMS
from tests.helpers.problems import seeded
from tests.helpers.processes import be_rank, free_port
from tests.helpers.weighted import language_problem


@pytest.mark.parametrize(
    ("device", "backends", "expected"),
    [
        ("cpu", "cpu:gloo,cuda:nccl", "cpu"),
        ("cpu", "cuda:nccl", "cuda"),  # of init_process_group("nccl"), which serves no CPU
        ("cuda:1", "cuda:nccl", "cuda:1"),
    ],
)
def test_sums_are_taken_on_a_device_that_the_group_serves(device, backends, expected):
    assert _served(torch.device(device), backends) == torch.device(expected)


def test_one_process_has_it_all():
    assert rank_and_size() == (0, 1)
    share = Share(7)
    assert share.rows == slice(0, 7)
    values, rows = torch.ones(3), np.ones((2, 3))
    assert share.sum(values) is values
    assert share.gather(rows) is rows


def as_rank(rank, port, size, name, path):
    """What one of `size` processes measures, saved by its rank."""
    be_rank(rank, port=port, size=size)
    with process_group(device="cpu"):
        problem = language_problem() if name == "weighted" else PROBLEMS[name]()
        found = gradient_moments(problem, num_examples=7, generator=seeded(1))
        few = gradient_moments(
            problem, num_examples=2, generator=seeded(1)
        )  # no more than processes
        scale = measure_noise(problem, hessian=True, hessian_examples=4, per_class=name == "cnn")
    record = {
        "norms": found.squared_norms.tolist(),
        "projections": found.projections.tolist(),
        "mean": {key: part.tolist() for key, part in found.mean.items()},
        "few": few.squared_norms.tolist(),
        "losses": found.losses.tolist(),
        "scale": scale.to_dict(),
    }
    (path / f"{rank}.json").write_text(json.dumps(record))


def close(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float):
        return one == pytest.approx(other, rel=1e-8, abs=1e-11)
    return one == other


@pytest.mark.processes
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "transformer", "weighted"])
def test_several_processes_give_the_numbers_of_one(name, tmp_path):
    multiprocessing.spawn(as_rank, (free_port(), 3, name, tmp_path), nprocs=3)
    first, *others = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3))
    assert others == [first, first]
    alone = tmp_path / "alone"
    alone.mkdir()
    multiprocessing.spawn(as_rank, (free_port(), 1, name, alone), nprocs=1)
    assert close(json.loads((alone / "0.json").read_text()), first)


@pytest.mark.processes
@pytest.mark.slow
def test_the_command_under_torchrun_prints_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*SMALL, "--out", tmp_path / "run").exit_code == 0
    command = [
        "-m",
        "noisescale",
        "measure-noise",
        str(tmp_path / "run" / "checkpoint.pt"),
        "--json",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    together = subprocess.run(
        [*torchrun, "--master-port", str(free_port()), *command],
        capture_output=True,
        text=True,
        check=True,
    )
    alone = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    (one,), (other,) = json.loads(together.stdout), json.loads(alone.stdout)
    assert one["simple"]["value"] == pytest.approx(other["simple"]["value"], rel=1e-5)
    assert one["num_examples"] == other["num_examples"]
