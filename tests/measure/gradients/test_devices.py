"""Per-example gradients on the CPU and, where there is one, on a GPU: the loop's own."""

import numpy as np
import pytest
import torch
from torch import nn

from noisescale.measure.gradients import choice as choice_module
from noisescale.measure.gradients.moments import gradient_moments
from noisescale.measure.noise import measure_noise
from noisescale.measure.objective import Objective
from noisescale.measure.objective.mean_loss import chunks
from noisescale.problems.models import mlp
from tests.helpers.devices import EVERYWHERE, on
from tests.helpers.models import PROBLEMS, loop
from tests.helpers.problems import classification

GIB = 2**30


@pytest.mark.parametrize("device", EVERYWHERE)
@pytest.mark.parametrize("engine", ["hooks", "vmap", "loop"])
@pytest.mark.parametrize("name", ["residual", "signals", "functional head", "repeated"])
def test_engines_give_the_loops_gradients(name, engine, device):
    problem = PROBLEMS[name]()
    wanted = loop(problem)
    found = gradient_moments(on(problem, device), engine=engine, chunk_size=4)
    assert found.engine == engine
    scale = float(wanted.squared_norms.sum(1).mean())
    np.testing.assert_allclose(
        found.squared_norms, wanted.squared_norms, rtol=1e-9, atol=1e-9 * scale
    )
    for key, mean in wanted.mean.items():
        torch.testing.assert_close(found.mean[key].cpu(), mean.double(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("device", EVERYWHERE)
@pytest.mark.parametrize("engine", ["hooks", "loop"])
def test_gradients_under_autocast_are_those_of_float32_up_to_bfloat16(engine, device):
    problem = classification(mlp((6,), 3, width=32), num_examples=40)
    problem = on(problem, device)
    problem.model.float()
    precise = gradient_moments(problem, engine=engine)
    found = gradient_moments(problem, engine=engine, amp="bf16")
    assert found.engine == engine
    assert np.abs(found.squared_norms / precise.squared_norms - 1).max() > 0
    total, expected = found.squared_norms.sum(), precise.squared_norms.sum()
    assert total == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("device", EVERYWHERE)
@pytest.mark.parametrize(
    "options", [{}, {"hessian": True, "num_probes": 8}, {"sign": True}, {"anatomy": True}], ids=str
)
def test_the_noise_scale_does_not_depend_on_the_device(options, device):
    problem = classification(num_examples=60)
    found, expected = (measure_noise(on(problem, place), **options) for place in (device, "cpu"))

    def numbers(noise):
        parts = [noise.squared_gradient_norm, noise.gradient_variance, noise.loss]
        if noise.curvature is not None:
            parts.append(noise.curvature.gradient_curvature)
        if noise.sign is not None:
            parts.append(noise.sign.simple)
        return [value for part in parts for value in (part.value, part.stderr)]

    assert numbers(found) == pytest.approx(numbers(expected), rel=1e-7, nan_ok=True)


@pytest.mark.parametrize("device", EVERYWHERE)
def test_norms_under_a_preconditioner_do_not_depend_on_the_device(device):
    problem = classification()
    names = dict(problem.model.named_parameters())
    given = {name: torch.rand_like(value) + 0.5 for name, value in names.items()}
    found, expected = (
        measure_noise(
            on(problem, place),
            preconditioner={name: value.to(place) for name, value in given.items()},
        ).preconditioned
        for place in (device, "cpu")
    )
    assert found.gradient_variance.value == pytest.approx(expected.gradient_variance.value)


@pytest.mark.gpu
def test_memory_that_is_short_on_a_gpu_makes_chunks_smaller_and_changes_nothing():
    """A real end of the memory, at about sixty-four megabytes more than there is already."""
    problem = on(classification(mlp((6,), 3, width=512), num_examples=8192), "cuda")
    whole = Objective(problem, chunk_size=8192).value_and_gradient()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    allowed = torch.cuda.memory_reserved() + 2**26
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    try:
        objective = Objective(problem, chunk_size=8192)
        loss, gradient = objective.value_and_gradient()
        moments = gradient_moments(problem, chunk_size=8192, engine="hooks")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert objective.chunk_size < 8192
    assert loss == pytest.approx(whole[0], rel=1e-12)
    torch.testing.assert_close(gradient, whole[1], rtol=1e-9, atol=1e-12)
    mean = torch.cat([part.flatten() for part in moments.mean.values()])
    torch.testing.assert_close(mean, whole[1].double(), rtol=1e-9, atol=1e-12)


@pytest.mark.gpu
def test_a_chunk_on_a_gpu_takes_an_eighth_of_what_is_free_or_unused():
    device = torch.device("cuda")
    before = chunks.free_bytes(device)
    held = torch.empty(GIB // 4, dtype=torch.uint8, device=device)
    assert before - chunks.free_bytes(device) == pytest.approx(held.nbytes, rel=0.1)
    del held  # which torch keeps, for none
    assert chunks.free_bytes(device) == pytest.approx(before, rel=0.01)
    expected = chunks.free_bytes(device) // 8 // 2**20
    assert chunks.largest_chunk(2**20, device) == pytest.approx(expected, rel=0.01)


def test_what_torch_holds_for_no_tensor_counts_as_free(monkeypatch):
    device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    assert chunks.free_bytes(device) == 8 * GIB
    assert chunks.largest_chunk(2**20, device) == 1024
    assert chunks.largest_chunk(1, device) == chunks.LARGEST_CHUNK_ON_GPU
    assert chunks.largest_chunk(2 * GIB, device) == 1


class Filling(nn.Module):
    """A layer whose memory holds so many examples."""

    def __init__(self, holds):
        super().__init__()
        self.holds = holds
        self.linear = nn.Linear(6, 3)

    def forward(self, inputs):
        if len(inputs) > self.holds:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return self.linear(inputs)


@pytest.mark.parametrize("engine", ["hooks", "vmap", "loop"])
def test_engines_back_off_from_the_end_of_the_memory(engine):
    filling = classification(Filling(10))
    plain = classification(nn.Linear(6, 3))
    params = {
        name.removeprefix("linear."): value for name, value in filling.model.named_parameters()
    }
    plain.model.load_state_dict(params)
    found = gradient_moments(filling, engine=engine, chunk_size=50)
    assert found.engine == engine
    wanted = loop(plain)
    np.testing.assert_allclose(found.squared_norms, wanted.squared_norms, rtol=1e-10)


def test_memory_that_ends_while_bytes_are_counted_takes_fewer_examples():
    objective = Objective(classification(Filling(5)))
    fewer = Objective(classification(nn.Linear(6, 3)))
    assert objective.bytes_per_example == pytest.approx(fewer.bytes_per_example, rel=0.5)
    assert objective.chunk_size > 5  # which is halved once it is tried
    objective.value_and_gradient()
    assert objective.chunk_size <= 5


def test_memory_that_ends_after_a_part_was_computed_adds_nothing_twice(monkeypatch):
    """The last copy of a chunk's second gradient fails, once: its first one is not added yet."""
    from noisescale.measure.objective.mean_loss import objective as module

    problem = classification()
    weights = torch.rand(2, 50, dtype=torch.float64)
    expected = Objective(problem).weighted_gradients(weights)[1]
    objective, calls = Objective(problem, chunk_size=25), []
    objective.check_any_company()

    def flatten(parts):
        calls.append(parts)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return torch.cat([part.flatten() for part in parts])

    monkeypatch.setattr(module, "flatten", flatten)
    torch.testing.assert_close(objective.weighted_gradients(weights)[1], expected)
    assert objective.chunk_size == 12


def test_an_engine_that_cannot_be_timed_for_want_of_memory_is_not_chosen():
    class Engine:
        objective = Objective(classification())

        def statistics(self, examples):
            raise torch.OutOfMemoryError("CUDA out of memory")

    assert choice_module._seconds(Engine(), None) == np.inf
