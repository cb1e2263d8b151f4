"""Data sets that are read as they are needed: what is read, what is held, what is drawn."""

import gc
import os
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from noisescale import (
    Problem,
    SharpnessOptions,
    gradient_moments,
    measure_noise,
    measure_sharpness,
)
from noisescale.errors import DataError, SettingError
from noisescale.problems.data import stream
from noisescale.problems.problem import Examples, as_examples, held, resident, source_of
from noisescale.problems.sampling import select
from tests.helpers.datasets import DRAWS, Items, global_states, scales, single_gradients

square = nn.MSELoss(reduction="none")


def regression(outputs, targets):
    return square(outputs, targets).sum(1)


def plain_item(index):
    row = torch.tensor([index % 7 - 3.0, index % 5, 1.0], dtype=torch.float64)
    return row, row[:1] + 0.1 * (index % 3)


def problem_of(data):
    return Problem(model=nn.Linear(3, 1).double(), loss=regression, train=data)


def noisy(draw, scale=0.5):
    """A data set whose every read draws noise on the inputs."""

    def item(index):
        inputs, targets = plain_item(index)
        return inputs + scale * draw(3), targets

    return Items(item, size=40)


def test_of_a_long_data_set_only_what_is_asked_for_is_read():
    data = Items(plain_item, size=3_000_000)
    problem = problem_of(data)
    noise = measure_noise(problem, num_examples=50)
    chosen = select(problem, num_examples=50).indices
    assert set(data.read) == set(chosen.tolist())
    assert noise.population_size == 3_000_000


class Living(Items):
    """Counts the items that exist at one time."""

    def __init__(self, size):
        super().__init__(plain_item, size)
        self.living = self.most = 0

    def __getitem__(self, index):
        inputs, targets = super().__getitem__(index)
        self.living += 1
        self.most = max(self.most, self.living)
        weakref.finalize(inputs, self._gone)
        return inputs, targets

    def _gone(self):
        self.living -= 1


@pytest.mark.parametrize("size", [64, 512])
def test_no_more_than_a_chunk_is_ever_held(size):
    data = Living(size)
    measure_noise(problem_of(data), chunk_size=16)
    gc.collect()
    assert data.most <= 16
    assert data.living == 0


def test_every_chunk_is_as_if_the_data_were_tensors():
    data = Items(plain_item, size=50)
    problem = problem_of(data)
    in_memory = replace(problem, train=as_examples(data))
    streamed = gradient_moments(problem, chunk_size=7, num_examples=31)
    tensors = gradient_moments(in_memory, num_examples=31)
    np.testing.assert_allclose(streamed.squared_norms, tensors.squared_norms, rtol=1e-12)
    np.testing.assert_array_equal(streamed.indices, tensors.indices)


@pytest.mark.parametrize("source", DRAWS)
def test_augmented_items_are_noticed_and_the_same_in_every_pass(source):
    problem = problem_of(noisy(DRAWS[source]))
    before = global_states()
    one, same = (measure_noise(problem, chunk_size=size) for size in (None, 7))
    other = measure_noise(problem, seed=1)
    assert global_states() == before
    assert one.simple.value == pytest.approx(same.simple.value, rel=1e-9)
    assert one.simple.value != pytest.approx(other.simple.value, rel=1e-6)
    (note,) = one.notes
    assert "change from read to read" in note
    assert "one draw of each" in note


def test_augmented_data_are_measured_as_they_were_drawn():
    problem = problem_of(noisy(DRAWS["torch"]))
    drawn = as_examples(source_of(problem.train, seed=3))
    losses = [
        problem.loss(problem.model(inputs[None]), targets[None])[0]
        for inputs, targets in zip(*drawn, strict=True)
    ]
    squared_norm, variance = scales(single_gradients(problem.model, losses))
    noise = measure_noise(problem, seed=3)
    assert noise.squared_gradient_norm.value == pytest.approx(squared_norm, rel=1e-9)
    assert noise.gradient_variance.value == pytest.approx(variance, rel=1e-9)


def test_random_numbers_that_change_nothing_in_a_few_items_are_noticed_later():
    def item(index):
        inputs, targets = plain_item(index)
        return (inputs + torch.randn(()) if index in (5, 6) else inputs), targets

    noise = measure_noise(problem_of(Items(item, size=40)))
    assert any("change from read to read" in note for note in noise.notes)


def test_plain_items_are_not_said_to_change():
    assert measure_noise(problem_of(Items(plain_item, size=40))).notes == ()


def test_items_with_a_generator_of_their_own_are_held():
    own = np.random.default_rng(0)
    data = noisy(lambda size: torch.as_tensor(own.normal(size=size)))
    noise = measure_noise(problem_of(data), hessian=True)
    assert any("held in memory" in note for note in noise.notes)


def test_items_that_can_neither_be_held_nor_drawn_again_are_refused(monkeypatch):
    monkeypatch.setattr(stream, "HELD_BYTES", 100)
    own = np.random.default_rng(0)
    data = noisy(lambda size: torch.as_tensor(own.normal(size=size)))
    with pytest.raises(DataError, match="cannot be drawn again"):
        measure_noise(problem_of(data))


def test_draws_of_each_example_are_averaged_by_request():
    draws = 4
    problem = problem_of(noisy(DRAWS["numpy"], scale=2.0))
    noise = measure_noise(problem, augmentations=draws, seed=1)
    every = as_examples(source_of(problem.train, seed=1, draws=draws))
    assert every.num_examples == 160
    losses = problem.loss(problem.model(every.inputs), every.targets)
    squared_norm, variance = scales(single_gradients_of(problem.model, losses))
    assert noise.population_size == noise.num_examples == 160
    assert noise.squared_gradient_norm.value == pytest.approx(squared_norm, rel=1e-9)
    assert noise.gradient_variance.value == pytest.approx(variance, rel=1e-9)
    assert noise.top_examples["index"].max() < 40
    assert any("4 draws of each" in note for note in noise.notes)


def single_gradients_of(model, losses):
    """As `single_gradients`, of losses in one graph."""
    params = list(model.parameters())
    rows = [torch.autograd.grad(loss, params, retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def test_many_draws_tend_to_the_noise_of_examples_and_augmentation_together():
    """Of z + e with e ~ N(0, s²): E g = 2((w·z + b − y)(z, 1) + (s²w, 0)); E|g|² by simulation."""
    scale = 2.0
    problem = problem_of(noisy(DRAWS["torch"], scale=scale))
    weight, bias = (param.detach() for param in problem.model.parameters())
    inputs, targets = as_examples(Items(plain_item, size=40))
    gaps = 2 * (inputs @ weight.T + bias - targets)  # (N, 1)
    mean = torch.cat([(gaps * inputs).mean(0) + 2 * scale**2 * weight[0], gaps.mean(0)])
    many = inputs.repeat(5000, 1) + scale * torch.randn(200_000, 3, dtype=torch.float64)
    errors = 2 * (many @ weight.T + bias - targets.repeat(5000, 1))
    mean_square = (errors**2 * (many.square().sum(1, keepdim=True) + 1)).mean()
    squared_norm = float(mean.square().sum())
    noise = measure_noise(problem, augmentations=200)
    # 8,000 draws: 1/√8000 of the spread of |g|², which is about twice its mean
    assert noise.squared_gradient_norm.value == pytest.approx(squared_norm, rel=0.05)
    variance = float(mean_square) - squared_norm
    assert noise.gradient_variance.value == pytest.approx(variance, rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augmentations": 0}, "augmentations 0: give a whole number of 1 or more"),
        ({"augmentations": 2}, "do not change from read to read; leave it at 1"),
        (
            {"augmentations": 2, "population": "distribution"},
            "one draw of each example is a sample of it already",
        ),
    ],
)
def test_augmentations_that_make_no_sense_are_refused(options, message):
    with pytest.raises(SettingError, match=message):
        measure_noise(problem_of(Items(plain_item, size=40)), **options)


def test_curvature_of_augmented_data_is_that_of_one_draw(monkeypatch):
    problem = problem_of(noisy(DRAWS["python"]))
    drawn = as_examples(source_of(problem.train, seed=0))
    inputs = torch.cat([drawn.inputs, torch.ones(40, 1)], 1)
    wanted = float(torch.linalg.eigvalsh(2 * inputs.T @ inputs / 40)[-1])
    for held_bytes in (2**30, 0):  # held, and read again for every product
        monkeypatch.setattr(stream, "HELD_BYTES", held_bytes)
        sharpness = measure_sharpness(problem)
        assert sharpness.largest.value.value == pytest.approx(wanted, rel=1e-6)
        assert "change from read to read" in sharpness.notes[0]


@pytest.mark.parametrize("held_bytes", [2**30, 0])
def test_curvature_of_a_data_set(monkeypatch, held_bytes):
    monkeypatch.setattr(stream, "HELD_BYTES", held_bytes)
    data = Items(plain_item, size=40)
    problem = problem_of(data)
    options = SharpnessOptions(batch_size=5, num_batches=3, num_examples=30)
    streamed = measure_sharpness(problem, options=options)
    tensors = measure_sharpness(replace(problem, train=as_examples(data)), options=options)
    assert streamed.largest.value.value == pytest.approx(tensors.largest.value.value, rel=1e-9)
    assert streamed.batch_sharpness.value == pytest.approx(tensors.batch_sharpness.value, rel=1e-9)
    assert streamed.notes == ()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError("cannot open"), r"item 17 of the Items cannot be read: OSError: cannot open"),
        (KeyError("missing"), r"item 17 .*: KeyError: 'missing'"),
        (AttributeError("nothing"), r"item 17 .*: AttributeError: nothing"),
    ],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_item_that_cannot_be_read_is_named(error, message, num_workers):
    def item(index):
        if index == 17:
            raise error
        return plain_item(index)

    data = DataLoader(Items(item, size=30), num_workers=num_workers)
    with pytest.raises(DataError, match=message):
        measure_noise(problem_of(data), chunk_size=8)


def test_several_items_are_read_in_one_call_where_the_data_set_can():
    class Several(Items):
        def __getitems__(self, indices):
            self.calls = [*getattr(self, "calls", []), len(indices)]
            return [self.item(index) for index in indices]

    data = Several(plain_item, size=30)
    gradient_moments(problem_of(data), chunk_size=10)
    assert max(data.calls) == 10
    assert data.read == []


@pytest.mark.processes
@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_workers_read_the_same(scale):
    data = noisy(DRAWS["torch"], scale=scale) if scale else Items(plain_item, size=40)
    problem = problem_of(DataLoader(data, num_workers=2))
    alone = replace(problem, train=data)
    found, wanted = (measure_noise(each, chunk_size=8) for each in (problem, alone))
    assert found.simple.value == pytest.approx(wanted.simple.value, rel=1e-12)
    assert found.notes == wanted.notes


def test_a_collate_function_that_draws_is_given_single_items():
    def masked(items):
        inputs, targets = zip(*items, strict=True)
        inputs = torch.stack(inputs)
        return inputs * torch.bernoulli(torch.full_like(inputs, 0.7)), torch.stack(targets)

    problem = problem_of(DataLoader(Items(plain_item, size=40), collate_fn=masked))
    before = global_states()
    one, same = (measure_noise(problem, chunk_size=size) for size in (None, 7))
    assert one.simple.value == pytest.approx(same.simple.value, rel=1e-9)
    assert "change from read to read" in one.notes[0]
    assert global_states() == before


class Endless(IterableDataset):
    def __iter__(self):
        return iter([plain_item(0)])


DATA = Items(plain_item, size=10)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Endless(), "type Endless: give noisescale.Examples, a map-style"),
        (DataLoader(Endless()), "Endless, an IterableDataset: give a map-style"),
        (DataLoader(DATA, batch_size=None), "batch_size None: which examples it draws"),
        (DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 10, 10)), "more often than others"),
        (
            DataLoader(
                DATA,
                batch_sampler=type("Own", (BatchSampler,), {})(SequentialSampler(DATA), 2, False),
            ),
            "batches of Own",
        ),
    ],
)
def test_data_that_cannot_be_counted_are_refused(data, message):
    with pytest.raises(SettingError, match=message):
        select(problem_of(data))


def test_a_sampler_of_a_subset_says_which_examples_there_are():
    data = DataLoader(DATA, sampler=SubsetRandomSampler([2, 5, 7]))
    assert as_examples(data).inputs.tolist() == [plain_item(i)[0].tolist() for i in (2, 5, 7)]


def test_training_holds_what_stays_the_same_and_fits(monkeypatch):
    assert isinstance(resident(source_of(DATA), "cpu"), Examples)
    changing = source_of(noisy(DRAWS["torch"]))
    assert resident(changing, "cpu") is changing
    monkeypatch.setattr(stream, "HELD_BYTES", 10)
    long = source_of(DATA)
    assert resident(long, "cpu") is held(long) is long


def test_an_item_that_is_found_to_draw_late_is_not_held_for_training():
    def item(index):
        inputs, targets = plain_item(index)
        return (inputs + torch.randn(()) if index == 5 else inputs), targets

    source = source_of(Items(item, size=40))
    assert not source.check().changes
    assert resident(source, "cpu") is source


@pytest.mark.processes
def test_workers_follow_when_the_chunks_change():
    source = source_of(DataLoader(Items(plain_item, size=40), num_workers=1))
    wanted = as_examples(Items(plain_item, size=40)).inputs
    spans = [(0, 4), (4, 8), (8, 12), (12, 14), (14, 16), (30, 33), (0, 5), (5, 10), (38, 40)]
    for start, stop in spans:
        part = source.part(slice(start, stop))
        assert torch.equal(part.inputs, wanted[start:stop])


class Dies(Items):
    """Ends the process that reads it, where that is a worker."""

    def __getitem__(self, index):
        if torch.utils.data.get_worker_info() is not None:
            os._exit(3)
        return super().__getitem__(index)


@pytest.mark.processes
def test_workers_that_die_are_said_to():
    problem = problem_of(DataLoader(Dies(plain_item, size=40), num_workers=1))
    with pytest.raises(DataError, match=r"1 workers .* fail: .*; give the DataLoader num_workers"):
        measure_noise(problem, chunk_size=8)


def test_moments_say_that_items_change():
    moments = gradient_moments(problem_of(noisy(DRAWS["torch"])))
    assert "one draw of each" in moments.notes[0]


def test_draws_differ_and_come_again():
    source = source_of(noisy(DRAWS["torch"])).check()
    rows = torch.tensor([3, 4])
    first, second = (source.drawn(draw).part(rows).inputs for draw in (0, 1))
    assert not torch.equal(first, second)
    assert torch.equal(source.subset(slice(3, 5)).drawn(1).part(slice(None)).inputs, second)
