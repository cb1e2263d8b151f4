"""Importance sampling: unbiased whatever the scores, by enumeration; scores in closed form."""

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import nn

from noisescale.errors import SettingError
from noisescale.problems.config import ProblemConfig
from noisescale.problems.models import cross_entropy
from noisescale.problems.problem import Examples, Problem
from noisescale.statistics.gradient_noise import noise_anatomy
from noisescale.studies.critical_batch.config import CriticalBatchConfig
from noisescale.studies.recommend.config import RecommendConfig
from noisescale.studies.stability_map.config import SweepConfig
from noisescale.training import trainer as module
from noisescale.training.config import TrainConfig
from noisescale.training.trainer import Training, train
from noisescale.training.updates import importance
from noisescale.training.updates.importance import ImportanceBatches
from tests.helpers.problems import classification, quadratic, seeded


def plan(**settings):
    given = {"sampling": "importance", "batch_size": 7, "learning_rate": 0.1, **settings}
    return TrainConfig(**given)


def scored(scores, *, floor=0.1, seed=0):
    """Batches that have these scores; nan: not drawn yet."""
    batches = ImportanceBatches(len(scores), floor=floor, seed=seed)
    batches.scores = torch.tensor(scores, dtype=torch.float64)
    return batches


def test_chances_go_with_the_scores_above_a_floor():
    chances = scored([1.0, 2.0, 0.0, math.nan], floor=0.2).chances
    # the one not drawn yet stands at the mean of the others, 1
    expected = [0.2 / 4 + 0.8 * score / 4 for score in (1, 2, 0, 1)]
    torch.testing.assert_close(chances, torch.tensor(expected, dtype=torch.float64))
    for nothing_known in ([math.nan] * 4, [0.0] * 4, [0.0, math.nan, 0.0, math.nan]):
        even = scored(nothing_known).chances
        torch.testing.assert_close(even, torch.full((4,), 0.25, dtype=torch.float64))
    even = scored([1.0, 5.0, 0.0], floor=1.0)
    even.take(3)
    torch.testing.assert_close(even.weights, torch.ones(3, dtype=torch.float64))


def test_examples_are_drawn_by_their_chances_and_weighted_by_the_inverse():
    batches = scored([4.0, 1.0, 0.0, 3.0, 2.0], floor=0.3, seed=3)
    chances = batches.chances
    number, counts = 4000, torch.zeros(5)
    for _ in range(number):
        indices = batches.take(5)
        torch.testing.assert_close(batches.weights, 1 / (5 * chances[indices]))
        counts += indices.bincount(minlength=5)
    for count, chance in zip(counts.tolist(), chances.tolist(), strict=True):
        assert stats.binomtest(round(count), 5 * number, chance).pvalue > 1e-4


def test_an_epoch_is_n_draws_and_its_last_batch_takes_the_rest():
    batches = ImportanceBatches(10, floor=0.5, seed=0)
    sizes = [len(batches.take(4)) for _ in range(5)]
    assert sizes == [4, 4, 2, 4, 4]
    assert (batches.epoch, batches.remaining) == (1, 2)
    assert len(batches.weights) == 4


def test_the_larger_norm_of_one_example_counts_and_none_that_is_not_finite():
    batches = scored([math.nan, 5.0, 7.0, 1.0, 2.0])
    norms = torch.tensor([3.0, 4.0, math.inf, 0.0, math.nan])
    batches.record(torch.tensor([0, 0, 1, 2, 4]), norms)
    expected = torch.tensor([4.0, math.nan, 0.0, 1.0, math.nan], dtype=torch.float64)
    torch.testing.assert_close(batches.scores, expected, equal_nan=True)


def stepped(problem, config, indices, weights):
    """The parameters after one update on these draws, and the loss told of it."""
    training = Training(problem, config)
    batches = training.batches
    batches._block, batches._block_weights = indices, weights
    next(iter(training))
    training.check_losses()
    return training.model.theta.detach().clone(), training.losses.rows[-1].loss


@pytest.mark.parametrize("chunk", [4096, 1])
def test_over_all_batches_that_can_be_drawn_the_update_is_that_of_the_full_batch(
    chunk, monkeypatch
):
    """5² ordered batches of two, by their chances: the mean step, and the mean of the losses."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    synthetic = quadratic(num_examples=5)
    chances = scored([4.0, 1.0, 0.0, 3.0, math.nan], floor=0.3).chances
    config = plan(batch_size=2, max_steps=1)
    theta, loss = torch.zeros(3, dtype=torch.float64), 0.0
    for batch in itertools.product(range(5), repeat=2):
        indices = torch.tensor(batch)
        at, told = stepped(synthetic.problem, config, indices, 1 / (5 * chances[indices]))
        chance = float(chances[indices].prod())
        theta, loss = theta + chance * at, loss + chance * told
    whole = TrainConfig(batch_size="full", learning_rate=0.1, max_steps=1)
    (expected,) = train(synthetic.problem, whole)
    torch.testing.assert_close(theta, expected.params["theta"])
    assert loss == pytest.approx(float(expected.losses[-1, -1]))


def test_by_the_norms_themselves_it_leaves_what_the_anatomy_forecasts():
    """The variance of one draw's weighted gradient, by enumeration, over that of an even draw."""
    generator = seeded(0)
    scales = torch.rand(12, 1, generator=generator, dtype=torch.float64) ** 3
    gradients = 0.3 + scales * torch.randn(12, 4, generator=generator, dtype=torch.float64)
    norms, mean = gradients.norm(dim=1), gradients.mean(0)
    chances = scored(norms.tolist(), floor=1e-12).chances
    weighted = gradients / (12 * chances[:, None])
    torch.testing.assert_close((chances[:, None] * weighted).sum(0), mean)
    variance = float((chances * (weighted - mean).square().sum(1)).sum())
    even = float((gradients - mean).square().sum(1).mean())
    forecast = noise_anatomy(
        gradients.square().sum(1, keepdim=True).numpy(),
        (gradients @ mean).numpy(),
        (mean @ mean).numpy()[None],
        population="dataset",
        population_size=12,
        names=["all"],
        indices=torch.arange(12).numpy(),
    )
    assert variance / even == pytest.approx(forecast.importance.value)


@pytest.mark.parametrize(
    "settings",
    [{}, {"optimizer": "adam"}, {"momentum": 0.9}, {"batch_size": 30}],
    ids=["in place", "adam", "momentum", "chunks"],
)
def test_scores_are_the_norms_at_the_outputs(settings, monkeypatch):
    """|p − y| of a softmax, at the parameters before the update, whatever an example's weight."""
    monkeypatch.setattr(module, "CHUNK", 20)
    problem = classification()
    training = Training(problem, plan(**settings))
    steps = iter(training)
    for _ in range(6):  # the first three updates in place are made twice
        before = {name: param.clone() for name, param in training.model.named_parameters()}
        taken = training.batches._taken
        next(steps)
        indices = training.batches._block[taken : taken + len(training.batches.weights)]
        if training.batches._taken == len(training.batches.weights):  # of a new block
            indices = training.batches._block[: len(training.batches.weights)]
        inputs, targets = problem.train.part(indices)
        outputs = torch.func.functional_call(training.model, before, (inputs,))
        residuals = outputs.softmax(1) - nn.functional.one_hot(targets, 3)
        torch.testing.assert_close(training.batches.scores[indices], residuals.norm(dim=1).detach())
    assert training.batches.weights.std() > 0


@pytest.mark.parametrize("blocks", [64, 2])  # of a batch each, or of 25 draws
def test_it_goes_on_bit_for_bit(blocks, monkeypatch):
    monkeypatch.setattr(importance, "BLOCKS", blocks)
    config = plan(epochs=4)
    checkpoints = list(train(classification(), config, checkpoint_steps=(0, 3, 11)))
    whole = checkpoints[-1]
    assert len({tuple(one.batches["scores"].tolist()) for one in checkpoints}) > 3
    for start in [*checkpoints[:-1], *checkpoints[:2]]:  # which the first time leaves as they were
        *_, again = train(classification(), config, start=start)
        assert all(torch.equal(again.params[name], whole.params[name]) for name in whole.params)
        assert torch.equal(again.losses, whole.losses)
        scores = (again.batches["scores"], whole.batches["scores"])
        torch.testing.assert_close(*scores, rtol=0, atol=0, equal_nan=True)


def test_orders_follow_from_their_seed():
    first, same, other = (
        list(train(classification(), plan(epochs=1, order_seed=seed)))[-1] for seed in (1, 1, 2)
    )
    assert torch.equal(first.losses, same.losses)
    assert not torch.equal(first.losses, other.losses)


class Named(nn.Module):
    """Outputs in a dict, beside a number of the whole batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, inputs):
        logits = self.layer(inputs)
        return {"logits": logits, "penalty": self.layer.weight.square().sum()}


def test_outputs_may_be_a_dict():
    def loss(outputs, targets):
        return cross_entropy(outputs["logits"], targets) + 0.01 * outputs["penalty"]

    torch.manual_seed(0)
    problem = classification(Named())
    problem = Problem(model=problem.model, loss=loss, train=problem.train)
    training = Training(problem, plan(batch_size=50, epochs=2))
    next(iter(training))
    scores = training.batches.scores
    assert 0.2 < float(scores.nanmean()) < math.sqrt(2)


def test_what_cannot_be_weighted_is_refused():
    problem = classification()
    with_batch_norm = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    with pytest.raises(SettingError, match="importance with batch norm"):
        Training(classification(with_batch_norm), plan())
    weighted = Problem(
        model=problem.model, loss=problem.loss, train=problem.train, weights=lambda y: 1.0 + y
    )
    with pytest.raises(SettingError, match="importance of a Problem with weights"):
        Training(weighted, plan())
    for size in ("full", "adaptive"):
        with pytest.raises(SettingError, match=f"importance with batch size {size}"):
            plan(batch_size=size)
    for floor in (0, -1, 1.5, math.nan, "some"):
        with pytest.raises(SettingError, match="sampling floor"):
            plan(sampling_floor=floor)
    with pytest.raises(SettingError, match="only importance takes one"):
        TrainConfig(sampling_floor=0.5)
    with pytest.raises(SettingError, match="sampling 'even': choose one of shuffle, importance"):
        TrainConfig(sampling="even")

    def of_the_mean(outputs, targets):
        return cross_entropy(outputs["mean"].expand(len(targets), 3), targets)

    class Mean(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, inputs):
            return {"mean": self.layer(inputs).mean(0, keepdim=True)}

    alone = Problem(model=Mean().double(), loss=of_the_mean, train=Examples(*problem.train))
    with pytest.raises(SettingError, match="no tensor with a row for each"):
        next(iter(Training(alone, plan())))


def test_studies_other_than_critical_batch_refuse_it():
    problem = ProblemConfig(dataset="digits", width=8)
    training = plan(batch_size=32)
    for study in (SweepConfig, RecommendConfig):
        with pytest.raises(SettingError, match="train and critical-batch take it"):
            study(problem=problem, training=training)
    config = CriticalBatchConfig(problem=problem, training=training)
    assert config.run(8, 0.1, 0, max_steps=5).sampling == "importance"
    assert config.identity()["training"]["sampling"] == "importance"
    assert "sampling" not in CriticalBatchConfig(problem=problem).identity()["training"]
