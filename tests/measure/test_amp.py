"""Automatic mixed precision: what bfloat16 costs in accuracy, and what engines do under it."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from noisescale import (
    Examples,
    NoiseOptions,
    Objective,
    Problem,
    ProblemConfig,
    SharpnessOptions,
    TrainConfig,
    build_problem,
    gradient_moments,
    load_checkpoint,
    measure_noise,
    measure_sharpness,
    mlp,
    train,
)
from noisescale.errors import SettingError
from noisescale.problems.models import cross_entropy
from tests.helpers.command_line import run


@pytest.fixture(scope="module")
def gpt():
    config = ProblemConfig(
        dataset="markov", model="gpt", width=32, depth=2, heads=2, context=32, num_train=64
    )
    return build_problem(config)


def by_hand(problem, amp):
    """|g_i|² by a plain loop, under autocast or without."""
    norms = []
    for index in range(16):
        part = problem.train.part(slice(index, index + 1))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            outputs = problem.model(part.inputs)
        loss = problem.loss(outputs.float(), part.targets).sum()
        gradients = torch.autograd.grad(loss, list(problem.model.parameters()))
        norms.append(sum(float(part.double().square().sum()) for part in gradients))
    return torch.tensor(norms)


@pytest.mark.parametrize("engine", ["hooks", "loop"])
def test_per_example_norms_are_those_of_a_plain_loop_under_autocast(gpt, engine):
    part = dataclasses.replace(gpt, train=gpt.train.part(slice(16)))
    found = gradient_moments(part, engine=engine, amp="bf16")
    assert found.engine == engine
    assert found.notes == (
        "a part of GPT with the loss sequence_cross_entropy computes in torch.bfloat16, the rest "
        "in torch.float32",
    )
    norms = torch.from_numpy(found.squared_norms.sum(1))
    # hooks multiply in float32 what autocast rounds to bfloat16 first: 2^-9 of each product
    tolerance = 1e-5 if engine == "loop" else 2**-9
    torch.testing.assert_close(norms, by_hand(part, amp=True).double(), rtol=tolerance, atol=0)
    exact = by_hand(part, amp=False).double()
    assert (norms / exact - 1).abs().max() > 1e-5  # it is not float32 after all


@pytest.mark.parametrize("engine", ["vmap", "compiled"])
def test_engines_that_cannot_hand_over_to_the_loop(gpt, engine):
    part = dataclasses.replace(gpt, train=gpt.train.part(slice(16)))
    found = gradient_moments(part, engine=engine, amp="bf16")
    assert found.engine == "loop"
    assert f"the engine {engine} does not work" in found.notes[0]


def test_the_error_of_bfloat16_on_the_gpt_is_small(gpt):
    """Beside float32: here .001 % of B_simple, .013 % of |G|² and tr Σ, and .033 % of λ_max."""
    noise = {}
    for amp in (None, "bf16"):
        scale = measure_noise(gpt, options=NoiseOptions(amp=amp))
        noise[amp] = [
            scale.simple.value,
            scale.squared_gradient_norm.value,
            scale.gradient_variance.value,
        ]
        assert scale.amp == amp
    curvature = {
        amp: measure_sharpness(gpt, options=SharpnessOptions(amp=amp)) for amp in (None, "bf16")
    }
    for plain, mixed in zip(*noise.values(), strict=True):
        assert mixed != plain
        assert mixed == pytest.approx(plain, rel=2e-3)
    plain, mixed = (curvature[amp].largest for amp in (None, "bf16"))
    assert mixed.value.value != plain.value.value
    assert mixed.value.value == pytest.approx(plain.value.value, rel=2e-3)
    assert mixed.converged
    assert curvature["bf16"].to_dict()["amp"] == "bf16"


def test_an_objective_is_left_in_float32(gpt):
    objective = Objective(gpt, amp="bf16")
    loss, gradient = objective.value_and_gradient()
    assert gradient.dtype == torch.float32
    assert objective.coarsest_dtype == torch.bfloat16
    assert loss == pytest.approx(Objective(gpt).value_and_gradient()[0], rel=1e-4)
    assert not torch.is_autocast_enabled("cpu")


class Batched(nn.Module):
    """An output that is a dict, as many models have."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, inputs):
        return {"logits": self.linear(inputs), "count": torch.tensor([3])}


def test_whatever_a_model_returns_is_cast_for_the_loss():
    def loss(outputs, targets):
        assert outputs["logits"].dtype == torch.float32
        assert outputs["count"].dtype == torch.int64
        return nn.functional.cross_entropy(outputs["logits"], targets, reduction="none")

    examples = Examples(torch.randn(20, 4), torch.randint(0, 3, (20,)))
    problem = Problem(model=Batched(), loss=loss, train=examples)
    assert measure_noise(problem, options=NoiseOptions(amp="bf16")).amp == "bf16"
    config = TrainConfig(batch_size=4, epochs=1, amp="bf16")
    assert list(train(problem, config))[-1].diverged_at_step is None


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda problem: Objective(problem, amp="bf16", dtype=torch.float64), "torch.float64"),
        (lambda problem: Objective(problem, amp="fp16"), "amp 'fp16': choose"),
        (lambda problem: TrainConfig(amp="fp16"), "amp 'fp16': choose"),
        (
            lambda problem: next(train(problem, TrainConfig(amp="bf16"))),
            "amp bf16 of a model in float64",
        ),
    ],
)
def test_what_autocast_does_not_serve_is_refused(measure, message):
    model = mlp((1, 4, 4), 3, width=4).double()
    examples = Examples(torch.randn(40, 1, 4, 4).double(), torch.randint(0, 3, (40,)))
    with pytest.raises(SettingError, match=message):
        measure(Problem(model=model, loss=cross_entropy, train=examples))


def test_a_step_of_training_is_that_of_a_plain_loop_under_autocast():
    problem = build_problem(ProblemConfig(dataset="digits", width=16, num_train=64))
    config = TrainConfig(batch_size="full", learning_rate=0.1, max_steps=1, amp="bf16")
    params = list(train(problem, config))[-1].params
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = problem.model(problem.train.inputs)
    assert outputs.dtype == torch.bfloat16
    problem.loss(outputs.float(), problem.train.targets).mean().backward()
    for name, param in problem.model.named_parameters():
        assert params[name].dtype == torch.float32
        torch.testing.assert_close(params[name], param.detach() - 0.1 * param.grad)


def test_the_commands_record_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--dataset", "digits", "--width", 16, "--epochs", 1, "--amp", "bf16", "--out", "run"]
    assert run("train", *small).exit_code == 0
    assert load_checkpoint("run").training.amp == "bf16"
    assert json.loads((tmp_path / "run/config.json").read_text())["training"]["amp"] == "bf16"
    for command in ("measure-noise", "sharpness"):
        where = [command, "run/checkpoint.pt", "--num-examples", 100, "--json"]
        assert json.loads(run(*where, "--amp", "bf16").stdout)[0]["amp"] == "bf16"
        assert json.loads(run(*where).stdout)[0]["amp"] is None
        result = run(*where, "--amp", "bf16", "--dtype", "float64")
        assert result.exit_code == 2
        assert "autocast leaves float64 as it is" in " ".join(result.stderr.split())
