"""What a measurement is said to take, against what it takes where a chunk's time is known."""

import json
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from noisescale.errors import SettingError
from noisescale.measure.noise import measure_noise
from noisescale.measure.noise_parts.options import NoiseOptions
from noisescale.measure.sharpness import SharpnessOptions, measure_sharpness
from noisescale.studies import cost as module
from noisescale.studies.cost import Cost, noise_cost, peak_memory, sharpness_cost
from tests.helpers.command_line import run
from tests.helpers.problems import classification

EXAMPLES = 400
MILLISECONDS = 0.2  # of an example


class Slow(nn.Linear):
    """A layer that sleeps, for each of its examples: its time is known whatever the machine."""

    def forward(self, inputs):
        time.sleep(1e-3 * MILLISECONDS * len(inputs))
        return super().forward(inputs)


@pytest.fixture
def slow():
    return classification(Slow(6, 3), num_examples=EXAMPLES)


def seconds(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def test_the_noise_scale_takes_what_was_foreseen(slow):
    options = NoiseOptions(chunk_size=20)
    cost = noise_cost(slow, options=options)
    taken = seconds(lambda: measure_noise(slow, options=options))
    assert (cost.num_examples, cost.chunk_size) == (EXAMPLES, 20)
    assert list(cost.parts) == ["gradients"]
    # a pass for norms and one for projections
    assert cost.seconds > 2 * EXAMPLES * 1e-3 * MILLISECONDS
    assert taken / 2.5 < cost.seconds < 2.5 * taken


def test_the_parts_of_the_noise_scale_are_counted(slow):
    plain = noise_cost(slow, options=NoiseOptions(chunk_size=20))
    options = NoiseOptions(chunk_size=20, hessian=True, num_probes=8, sign=True, anatomy=True)
    cost = noise_cost(slow, options=options)
    both = noise_cost(slow, options=options, geometries=2)
    assert list(cost.parts) == ["gradients", "hessian", "sign", "classes", "anatomy"]
    assert cost.seconds > 3 * plain.seconds
    assert cost.most_seconds == pytest.approx(cost.seconds)
    assert both.parts["hessian"] == pytest.approx(2 * cost.parts["hessian"], rel=0.5)
    assert cost.memory_bytes >= plain.memory_bytes > 2**20


def test_the_eigenvectors_cost_what_they_are_taken_of(monkeypatch):
    """Where products cost alike, the Hessian's part is its count of products that were made."""
    problem = classification(nn.Linear(6, 3), num_examples=EXAMPLES)
    made = []
    monkeypatch.setattr(module._Products, "times", lambda self, number: made.append(number) or 1.0)
    options = NoiseOptions(chunk_size=20, hessian=True, num_probes=8)
    noise_cost(problem, options=options)
    found = measure_noise(problem, options=options).curvature
    assert made[-1] == pytest.approx(found.num_matvecs, rel=0.3)


@pytest.mark.parametrize("options", [{"per_class": True}, {"anatomy": True}])
def test_what_is_measured_class_by_class_takes_what_was_foreseen(slow, options):
    chosen = NoiseOptions(chunk_size=20, **options)
    cost = noise_cost(slow, options=chosen)
    taken = seconds(lambda: measure_noise(slow, options=chosen))
    assert taken / 2.5 < cost.seconds < 2.5 * taken
    assert cost.parts["classes"] > EXAMPLES * 1e-3 * MILLISECONDS


def test_sharpness_takes_what_was_foreseen_of_the_products_it_took(slow, monkeypatch):
    """The number of products is not known before; here it is given."""
    options = SharpnessOptions(top=1)
    sharpness = measure_sharpness(slow, options=options)
    taken = seconds(lambda: measure_sharpness(slow, options=options))
    monkeypatch.setattr(module, "LARGEST_MATVECS", sharpness.num_matvecs)
    cost = sharpness_cost(slow, options=options)
    assert list(cost.parts) == ["gradient", "eigenvalues"]
    assert taken / 4 < cost.seconds < 4 * taken
    assert cost.most_seconds > cost.seconds


def test_every_part_of_sharpness_costs_something():
    problem = classification()
    options = SharpnessOptions(
        top=2, bottom=1, trace=True, density=True, phi=True, batch_size=4, critical=True
    )
    cost = sharpness_cost(problem, options=options, geometries=2)
    names = ["gradient", "eigenvalues", "critical", "batch sharpness", "trace", "density", "phi"]
    assert list(cost.parts) == names
    assert all(taken > 0 for taken in cost.parts.values())
    # 30 products of the trace, 120 of the density
    assert cost.parts["density"] / cost.parts["trace"] == pytest.approx(4, rel=0.2)


def test_what_cannot_be_measured_is_refused_and_what_can_is_not():
    problem = classification()
    with pytest.raises(SettingError, match="augmentations 2"):
        noise_cost(problem, options=NoiseOptions(split="test", augmentations=2))
    with pytest.raises(SettingError, match="1 example"):
        noise_cost(problem, options=NoiseOptions(num_examples=1))
    one_by_one = NoiseOptions(chunk_size=1, hessian=True, num_examples=6)
    measure_noise(problem, options=one_by_one)
    assert noise_cost(problem, options=one_by_one).num_examples == 6


@pytest.mark.parametrize(
    ("kept_chunks", "number", "expected"),
    [
        (10, 0, 0.0),
        (10, 5, 5 * 10 * 1),
        (0, 5, 5 * 10 * 3),  # recorded anew each time
        (4, 5, 5 * (4 * 1 + 6 * 3)),
    ],
)
def test_products_are_counted_by_where_their_graphs_are(kept_chunks, number, expected):
    products = module._Products(
        anew=3.0, kept=1.0, chunks=10, kept_chunks=kept_chunks, memory_bytes=0
    )
    assert products.times(number) == pytest.approx(expected)
    assert products.recording == kept_chunks * (3 - 1)


def test_the_peak_of_memory_is_in_bytes():
    held = torch.ones(2**24)
    assert held.nbytes < peak_memory("cpu") < 2**40


def test_a_measurement_disturbs_nothing(slow):
    before = torch.get_rng_state()
    weights = [parameter.clone() for parameter in slow.model.parameters()]
    noise_cost(slow, options=NoiseOptions(num_examples=40))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, weights, slow.model.parameters()))
    assert all(parameter.grad is None for parameter in slow.model.parameters())


@pytest.mark.parametrize("command", ["measure-noise", "sharpness"])
def test_a_dry_run_says_what_it_will_take_and_measures_nothing(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    problem = "tests/helpers/own_problems.py:quadratic"
    result = run(command, "--problem", problem, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "|G|²" not in result.stdout
    assert "λ_max" not in result.stdout
    assert "About" in result.stdout
    assert "GB of memory" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    record = json.loads(run(command, "--problem", problem, "--dry-run", "--json").stdout)
    assert record["checkpoints"] == 1
    assert record["seconds"] == pytest.approx(sum(part["seconds"] for part in record["parts"]))
    assert record["total_seconds"] == record["seconds"] > 0


def test_a_cost_shows_itself():
    cost = Cost(
        parts={"gradients": 2.0, "hessian": 6.0},
        most_seconds=8.0,
        memory_bytes=10**9,
        num_examples=100,
        chunk_size=10,
    )
    assert cost.seconds == 8
    assert cost.to_dict()["parts"][1] == {"part": "hessian", "seconds": 6.0}
    assert repr(cost).splitlines() == [
        "About 8 s, and 1 GB of memory",
        "  part       seconds  share",
        "  gradients      2.0    25%",
        "  hessian        6.0    75%",
        "Note: by 10 of 100 examples, within a factor of two.",
    ]
    twice = replace(cost.times(2), most_seconds=100.0)
    assert repr(twice).startswith("About 16 s")
    assert "1 min 40 s where no search for eigenvalues converges" in repr(twice)
