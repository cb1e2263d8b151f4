import dataclasses
import json

import pytest
import torch

from noisescale import Examples, Problem, TrainConfig, measure_noise, train
from noisescale.errors import SettingError
from noisescale.problems.problem import units_per_example
from noisescale.statistics.critical_batch.advice import Advice, AimedSize
from tests.helpers.command_line import run, strict


def count(labels):  # (B, T) -> (B,)
    return (labels >= 0).sum(1)


def loss(outputs, labels):
    """The mean over an example's valid places of half the squared error."""
    errors = 0.5 * (outputs - labels) ** 2 * (labels >= 0)
    return errors.sum(1) / count(labels)


def padded(**settings):
    torch.manual_seed(0)
    labels = torch.rand(30, 5, dtype=torch.float64)
    for row in range(30):
        labels[row, 1 + row % 5 :] = -1.0
    examples = Examples(torch.randn(30, 3, dtype=torch.float64), labels)
    model = torch.nn.Linear(3, 5).double()
    return Problem(model=model, loss=loss, train=examples, **settings)


def test_the_units_of_each_example_are_what_it_counts_for():
    """So that the gradient is that of the mean over all valid places, by a loss of all of them."""
    problem = padded(units=count)
    inputs, labels = problem.train
    valid = labels >= 0
    whole = (0.5 * (problem.model(inputs) - labels)[valid] ** 2).mean()
    gradients = torch.autograd.grad(whole, list(problem.model.parameters()))
    noise = measure_noise(problem)
    wanted = sum((gradient**2).sum() for gradient in gradients)
    assert noise.squared_gradient_norm.value == pytest.approx(wanted.item(), rel=1e-12)
    assert noise.loss.value == pytest.approx(whole.item(), rel=1e-12)
    assert noise.units_per_example == pytest.approx(valid.double().sum(1).mean().item())


def test_weights_may_say_otherwise_and_a_number_weighs_nothing():
    plain = measure_noise(padded())
    by_number = measure_noise(padded(units=5))
    assert by_number.units_per_example == 5
    assert by_number.simple == plain.simple
    other = measure_noise(padded(units=count, weights=lambda labels: torch.ones(len(labels))))
    assert other.squared_gradient_norm.value == pytest.approx(plain.squared_gradient_norm.value)
    assert other.units_per_example == 3
    assert plain.units_per_example is None


def test_training_takes_the_mean_over_the_units():
    config = TrainConfig(batch_size=30, learning_rate=0.1, max_steps=1)
    (by_units,) = train(padded(units=count), config)
    (by_weights,) = train(padded(weights=count), config)
    assert torch.equal(by_units.params["weight"], by_weights.params["weight"])


def test_units_are_counted_some_at_a_time(monkeypatch):
    monkeypatch.setattr("noisescale.problems.problem.COUNTED", 7)
    assert units_per_example(count, padded().train) == 3


@pytest.mark.parametrize("units", [0, -1, float("nan"), "64", True])
def test_units_that_are_none_are_refused(units):
    with pytest.raises(SettingError, match=r"units .*: give the number of tokens"):
        padded(units=units)


def test_advice_has_a_line_in_tokens():
    size = AimedSize(aim="balanced", batch_size=32, low=16, high=64, learning_rate=0.1)
    advice = Advice(heading="B_crit:", sizes=(size,), units_per_example=64.0)
    assert "In tokens, 64 an example: 2,048." in advice.block(80)
    assert Advice.from_dict(json.loads(json.dumps(advice.to_dict()))) == advice
    without = dataclasses.replace(advice, units_per_example=None)
    assert "tokens" not in "".join(without.block(80))
    old = {key: value for key, value in advice.to_dict().items() if key != "units_per_example"}
    assert Advice.from_dict(old) == without  # as earlier versions stored it


def test_the_command_line_tells_both(tmp_path):
    options = ("--num-train", "60", "--width", "8", "--depth", "1", "--heads", "2")
    folder = tmp_path / "run"
    trained = run(
        *("train", "--dataset", "markov", *options, "--context", "12", "--max-steps", "2"),
        *("--bs", "10", "--out", folder),
    )
    assert " 10      120 " in trained.stdout
    assert strict((folder / "summary.json").read_text())["units_per_example"] == 12
    (entry,) = strict(run("measure-noise", folder, "--json").stdout)
    assert entry["units_per_example"] == 12
    printed = run("measure-noise", folder, "--unit", "tokens").stdout
    in_tokens = f"{12 * entry['simple']['value']:.3g}"
    assert "Noise scales in the tables are in tokens, 12 an example." in printed
    assert in_tokens in next(line for line in printed.splitlines() if "B_simple =" in line)
    assert f"That is {in_tokens} tokens, 12 an example." in " ".join(printed.split())


def test_tokens_of_images_are_refused(tmp_path):
    run("train", "--dataset", "digits", "--width", "8", "--max-steps", "1", "--out", tmp_path / "a")
    result = run("measure-noise", tmp_path / "a", "--unit", "tokens")
    assert result.exit_code == 2
    assert "the problem does not say how many tokens" in " ".join(result.stderr.split())
