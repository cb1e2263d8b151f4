"""λ_max(P^½HP^½) and the limits of stability of adaptive optimizers."""

import dataclasses
import json

import pytest
import torch
from torch import nn

from noisescale import (
    Examples,
    Problem,
    ProblemConfig,
    SharpnessOptions,
    build_problem,
    measure_sharpness,
)
from noisescale.errors import CheckpointError, SettingError
from noisescale.problems.models import cross_entropy, mlp
from tests.helpers.dense import dense_hessian

EXACTLY = SharpnessOptions(rtol=1e-9)


def network(num_examples=40, *, norm="layer"):
    torch.manual_seed(0)
    model = mlp((1, 4, 4), 3, width=5, norm=norm).double()
    examples = Examples(
        torch.randn(num_examples, 1, 4, 4, dtype=torch.float64),
        torch.randint(0, 3, (num_examples,)),
    )
    return Problem(model=model, loss=cross_entropy, train=examples)


def random_diagonal(model):
    generator = torch.Generator().manual_seed(7)
    return {
        name: 0.1 + torch.rand(param.shape, generator=generator, dtype=torch.float64)
        for name, param in model.named_parameters()
    }


def flat(diagonal):
    return torch.cat([part.flatten() for part in diagonal.values()])


def hessian_of(problem):
    return dense_hessian(
        problem.model,
        lambda model: problem.loss(model(problem.train.inputs), problem.train.targets).mean(),
    )


def test_it_is_the_largest_eigenvalue_of_the_dense_matrix():
    problem = network()
    diagonal = random_diagonal(problem.model)
    found = measure_sharpness(problem, options=EXACTLY, preconditioner=diagonal)
    root = flat(diagonal).sqrt()
    values = torch.linalg.eigvalsh(root.unsqueeze(1) * hessian_of(problem) * root)
    under = found.preconditioned
    assert under.largest.value.value == pytest.approx(values[-1].item(), rel=1e-9)
    assert under.largest.converged
    assert under.largest.value.kind == "exact"
    assert under.ratio is None
    assert under.stable_sharpness is None
    assert found.largest.value.value == pytest.approx(
        torch.linalg.eigvalsh(hessian_of(problem))[-1].item(), rel=1e-9
    )


def test_an_even_preconditioner_gives_the_plain_eigenvalue_with_all_its_errors():
    problem = network()
    even = {name: torch.ones_like(param) for name, param in problem.model.named_parameters()}
    options = dataclasses.replace(EXACTLY, num_examples=32)
    found = measure_sharpness(problem, options=options, preconditioner=even)
    plain, under = found.largest.value, found.preconditioned.largest.value
    for part in ("value", "stderr", "low", "high"):
        assert getattr(under, part) == pytest.approx(getattr(plain, part), rel=1e-12)


class Rescaled(nn.Module):
    """A network in the coordinates P^(−½)θ of one weight."""

    def __init__(self, weight, root):
        super().__init__()
        self.root, self.weight = root, nn.Parameter(weight / root)

    def forward(self, inputs):
        return torch.tanh(inputs @ (self.root * self.weight))


@pytest.mark.parametrize("num_examples", [30, 60])
def test_the_rescaled_parametrisation_measured_plainly_gives_the_same(num_examples):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(60, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, generator=generator, dtype=torch.float64)
    diagonal = 0.1 + torch.rand(4, generator=generator, dtype=torch.float64)

    def problem(root):
        return Problem(
            model=Rescaled(weight, root),
            loss=lambda outputs, targets: (outputs - targets).square(),
            train=Examples(inputs, targets),
        )

    options = dataclasses.replace(EXACTLY, num_examples=num_examples)
    given = measure_sharpness(
        problem(torch.ones_like(weight)), options=options, preconditioner={"weight": diagonal}
    ).preconditioned.largest
    plain = measure_sharpness(problem(diagonal.sqrt()), options=options).largest
    for part in ("value", "stderr", "low", "high"):
        assert getattr(given.value, part) == pytest.approx(getattr(plain.value, part), rel=1e-8)


SETTINGS = {
    "Adam": (torch.optim.Adam, {}),
    "amsgrad": (torch.optim.Adam, {"amsgrad": True, "betas": (0.5, 0.999)}),
    "Adam with a penalty": (torch.optim.Adam, {"weight_decay": 0.5}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.3, "betas": (0.8, 0.99)}),
    "RMSprop": (torch.optim.RMSprop, {}),
    "RMSprop, centred, with momentum": (torch.optim.RMSprop, {"centered": True, "momentum": 0.6}),
    "RMSprop with a penalty": (torch.optim.RMSprop, {"weight_decay": 0.5}),
}
KINDS = {"amsgrad": "Adam", "RMSprop, centred, with momentum": "RMSprop"}


def quadratic():
    """½·mean (xᵀw)², of which w = 0 is the minimum, with a penalty too."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    inputs *= torch.tensor([2.0, 1.0, 0.5])
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.01)
    return Problem(
        model=model,
        loss=lambda outputs, targets: outputs[:, 0].square() / 2,
        train=Examples(inputs, torch.zeros(50)),
    )


def frozen(name, model, *, rate):
    """The optimizer with second moments that no step changes, as of a run of 1e15 steps."""
    make, settings = SETTINGS[name]
    memory = 1 - 1e-15
    if make is torch.optim.RMSprop:
        settings = settings | {"alpha": memory}
    else:
        settings = settings | {"betas": (settings.get("betas", (0.9,))[0], memory)}
    optimizer = make(model.parameters(), lr=rate, eps=1e-3, **settings)
    second = torch.tensor([[0.3, 0.02, 0.5]], dtype=torch.float64)
    kept = {"step": torch.tensor(1e17, dtype=torch.float64)}
    if make is torch.optim.RMSprop:
        kept["square_avg"] = second
        if settings.get("centered"):
            kept |= {"grad_avg": torch.full_like(second, 0.1)}
            kept |= {"momentum_buffer": torch.zeros_like(second)}
    else:
        kept |= {"exp_avg_sq": second, "exp_avg": torch.zeros_like(second)}
        if settings.get("amsgrad"):
            kept["max_exp_avg_sq"] = 2 * second
    optimizer.state[model.weight].update(kept)
    return optimizer


@pytest.mark.parametrize("name", SETTINGS)
def test_full_batch_training_is_stable_up_to_the_limit_and_no_further(name):
    """The optimizers themselves, of torch, are the oracle: on a quadratic, with P held fixed."""

    def ratio(rate):
        problem = quadratic()
        optimizer = frozen(name, problem.model, rate=rate)
        under = measure_sharpness(problem, options=EXACTLY, preconditioner=optimizer).preconditioned
        assert under.optimizer == KINDS.get(name, name.split()[0])
        assert under.learning_rate == rate
        return under.ratio.value

    edge = 0.01
    for _ in range(12 if name == "AdamW" else 1):  # whose limit is no multiple of 1/η
        edge /= ratio(edge)
    for factor, grows in ((0.99, False), (1.01, True)):
        problem = quadratic()
        optimizer = frozen(name, problem.model, rate=factor * edge)
        largest = 0.0  # later on, second moments follow what grows, and tame it
        for _ in range(800):
            optimizer.zero_grad()
            problem.loss(problem.model(problem.train.inputs), None).mean().backward()
            optimizer.step()
            largest = max(largest, problem.model.weight.norm().item())
        assert (largest > 1) == grows
        if not grows:
            assert problem.model.weight.norm().item() < 1e-4


def trained(make, problem, steps=3, **settings):
    optimizer = make(problem.model.parameters(), **settings)
    for _ in range(steps):
        optimizer.zero_grad()
        problem.loss(problem.model(problem.train.inputs), problem.train.targets).mean().backward()
        optimizer.step()
    return optimizer


def test_an_optimizer_its_state_and_a_file_of_it_are_one(tmp_path):
    problem = network()
    optimizer = trained(torch.optim.AdamW, problem, lr=2e-3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    kinds = (optimizer, optimizer.state_dict(), tmp_path / "optimizer.pt")
    first, *others = (
        measure_sharpness(problem, preconditioner=given).preconditioned for given in kinds
    )
    assert first.optimizer == "AdamW"
    expected = 1.9 / 0.1 * (2 / 2e-3 - 0.01)  # the decay's default is 0.01
    assert first.stable_sharpness == pytest.approx(expected)
    assert first.notes == (
        "the optimizer has made so few steps that its bias correction still enlarges them: the "
        "limit of stability is that of later ones",
    )
    assert all(other.largest == first.largest for other in others)
    assert all(other.stable_sharpness == first.stable_sharpness for other in others)
    content = json.loads(json.dumps(first.to_dict(), allow_nan=False))
    assert content["ratio"]["value"] == pytest.approx(
        first.largest.value.value / first.stable_sharpness
    )


def test_groups_with_rates_of_their_own_have_them_in_P():
    """One rate for all, times tenfold second moments, is what a tenth of the rate does."""
    problem = network()
    first, *others = problem.model.parameters()
    groups = [{"params": [first]}, {"params": others, "lr": 1e-3}]
    torch.manual_seed(1)
    optimizer = torch.optim.RMSprop(groups, lr=1e-2, eps=1e-12)
    problem.loss(problem.model(problem.train.inputs), problem.train.targets).mean().backward()
    optimizer.step()
    under = measure_sharpness(problem, options=EXACTLY, preconditioner=optimizer).preconditioned
    root = torch.cat(
        [
            (scale / (optimizer.state[param]["square_avg"].sqrt() + 1e-12)).flatten()
            for param, scale in zip((first, *others), (1.0, *[0.1] * len(others)), strict=True)
        ]
    ).sqrt()
    values = torch.linalg.eigvalsh(root.unsqueeze(1) * hessian_of(problem) * root)
    assert under.largest.value.value == pytest.approx(values[-1].item(), rel=1e-8)
    assert under.learning_rate == 1e-2
    assert under.stable_sharpness == 200


@pytest.mark.parametrize(
    ("make", "settings", "note"),
    [
        (torch.optim.NAdam, {}, "no limit of stability is known for this optimizer"),
        (
            torch.optim.Adam,
            {"lr": 0.0},
            "no limit of stability is given: the learning rate is zero",
        ),
    ],
)
def test_where_no_limit_is_known_there_is_none(make, settings, note):
    problem = network()
    under = measure_sharpness(problem, preconditioner=trained(make, problem, **settings))
    assert under.preconditioned.stable_sharpness is None
    assert under.preconditioned.ratio is None
    assert note in under.preconditioned.notes


def test_with_batch_norm_no_limit_is_given():
    problem = network(norm="batch")
    optimizer = trained(torch.optim.Adam, problem)
    under = measure_sharpness(problem, preconditioner=optimizer).preconditioned
    assert under.stable_sharpness is None
    assert "batch norm" in " ".join(under.notes)


def test_no_adaptive_optimizer_is_refused(tmp_path):
    problem = network()
    with pytest.raises(SettingError, match="no second moments"):
        measure_sharpness(problem, preconditioner=trained(torch.optim.SGD, problem, lr=0.1))
    with pytest.raises(CheckpointError, match="there is no"):
        measure_sharpness(problem, preconditioner=tmp_path / "none.pt")


def test_the_next_search_starts_from_the_earlier_vector():
    problem = network()
    optimizer = trained(torch.optim.Adam, problem)
    first = measure_sharpness(problem, preconditioner=optimizer)
    assert set(first.starts) == {"largest", "preconditioned"}
    again = measure_sharpness(problem, preconditioner=optimizer, start=first)
    assert again.num_matvecs < first.num_matvecs
    assert again.preconditioned.largest.value.value == pytest.approx(
        first.preconditioned.largest.value.value, rel=1e-4
    )


def test_it_is_printed_and_a_row_of_the_frame():
    problem = network()
    found = measure_sharpness(problem, preconditioner=trained(torch.optim.Adam, problem))
    assert "λ_max(P^½HP^½)" in repr(found)
    row = found.to_frame().iloc[0]
    assert row["preconditioned_eigenvalue"] == found.preconditioned.largest.value.value
    assert row["preconditioned_stable"] == found.preconditioned.stable_sharpness


@pytest.mark.slow
def test_full_batch_rmsprop_hovers_at_its_limit():
    """Cohen et al. 2022, figure 1, on the digits: it rises to 2/η and stays there."""
    problem = build_problem(ProblemConfig(dataset="digits", width=32, loss="mse"))
    model = problem.model
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-4, eps=1e-7)
    ratios = {}
    for step in range(1, 1251):
        optimizer.zero_grad()
        problem.loss(model(problem.train.inputs), problem.train.targets).mean().backward()
        optimizer.step()
        if step in (10, 500, 750, 1000, 1250):
            found = measure_sharpness(problem, preconditioner=optimizer)
            ratios[step] = found.preconditioned.ratio.value
    assert ratios.pop(10) < 0.4
    assert all(0.93 < ratio < 1.07 for ratio in ratios.values())  # .976 to 1.002 where measured
