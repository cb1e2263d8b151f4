"""Critical sharpness, 2/η_c, along the updates of any optimizer."""

import copy
import json
import math

import pytest
import torch
from torch import nn

from noisescale import (
    Examples,
    Objective,
    Problem,
    SharpnessOptions,
    critical_sharpness,
    measure_sharpness,
)
from noisescale.errors import SettingError
from noisescale.measure.sharpness.update import next_update
from noisescale.problems.models import cross_entropy, mlp


def network():
    torch.manual_seed(0)
    model = mlp((1, 4, 4), 3, width=5, norm="layer").double()
    examples = Examples(torch.randn(40, 1, 4, 4, dtype=torch.float64), torch.randint(0, 3, (40,)))
    return Problem(model=model, loss=cross_entropy, train=examples)


def loss_of(problem, model):
    return problem.loss(model(problem.train.inputs), problem.train.targets).mean()


def quadratic():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(60, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    nn.init.constant_(model.weight, 0.5)
    problem = Problem(
        model=model,
        loss=lambda outputs, targets: (outputs - targets).square()[:, 0],
        train=Examples(inputs, targets),
    )
    hessian = 2 * inputs.T @ inputs / 60
    gradient = 2 * inputs.T @ (model(inputs) - targets).detach() / 60
    return problem, hessian, gradient[:, 0]


@pytest.mark.parametrize("start", [None, 1e-6, 0.3, 1e4])
def test_on_a_quadratic_it_is_the_curvature_along_the_update(start):
    problem, hessian, gradient = quadratic()
    for update in (None, torch.tensor([1.0, -0.2, 0.3, 0.1]).double() * gradient.sign()):
        along = gradient if update is None else update.abs() * gradient.sign()
        expected = float(along @ hessian @ along / (along @ gradient))
        given = None if update is None else along
        found = critical_sharpness(Objective(problem), given, start=start)
        assert found.value.value == pytest.approx(expected, rel=1e-6)
        assert found.value.low <= expected <= found.value.high
        assert found.value.high / found.value.low < 1.021
        assert found.learning_rate.value == pytest.approx(2 / expected, rel=1e-6)
        assert found.num_passes <= (4 if start is None else 10)


def test_its_bracket_holds_the_first_rise_found_by_trying_every_rate():
    problem = network()
    objective = Objective(problem)
    found = critical_sharpness(objective)
    loss, gradient = objective.value_and_gradient()
    rates = torch.linspace(0, 3 * float(found.learning_rate), 600)[1:]
    changes = [
        objective.value_and_gradient(objective.point - r * gradient)[0] - loss for r in rates
    ]
    first = next(float(r) for r, change in zip(rates, changes, strict=True) if change > 0)
    step = float(rates[1] - rates[0])
    assert found.learning_rate.low - step <= first <= found.learning_rate.high + step
    assert found.num_passes <= 10


def test_float32_agrees_with_float64():
    problem = network()
    precise = critical_sharpness(Objective(problem)).value.value
    problem.model.float()
    rough = critical_sharpness(Objective(problem, dtype=torch.float32)).value
    assert rough.low * 0.999 <= precise <= rough.high * 1.001


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 1e-2, "weight_decay": 0.1, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 1e-2, "weight_decay": 0.5}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 1e-3, "momentum": 0.5, "centered": True}),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2}),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_update_is_that_of_the_optimizers_own_next_step(kind):
    make, settings = OPTIMIZERS[kind]
    problem = network()
    model = problem.model
    first, *others = model.parameters()
    optimizer = make(
        [{"params": [first], "lr": settings["lr"] / 10}, {"params": others}], **settings
    )
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(problem, model).backward()
        optimizer.step()
    before = copy.deepcopy(optimizer.state_dict())
    params = {name: param.detach().clone() for name, param in model.named_parameters()}
    optimizer.zero_grad()
    loss_of(problem, model).backward()
    gradient = {name: param.grad.clone() for name, param in model.named_parameters()}
    live = next_update(optimizer, model, params, gradient)
    state = optimizer.state_dict()
    for group in state["param_groups"]:  # which of the two Adams it is, which torch 2.6 leaves out
        group.setdefault("decoupled_weight_decay", kind == "adamw")
    stored = next_update(state, model, params, gradient)
    after = optimizer.state_dict()
    for number, state in before["state"].items():  # left as it was
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(after["state"][number][key]))
    optimizer.step()
    for name, param in model.named_parameters():
        wanted = (params[name] - param.detach()) / settings["lr"]
        torch.testing.assert_close(live[name], wanted, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(stored[name], live[name], rtol=1e-12, atol=1e-15)


def test_measured_with_an_optimizer_it_is_of_its_next_step():
    problem = network()
    optimizer = torch.optim.AdamW(problem.model.parameters(), lr=1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(problem, problem.model).backward()
        optimizer.step()
    options = SharpnessOptions(critical=True)
    found = measure_sharpness(problem, options=options, preconditioner=optimizer).critical
    state = optimizer.state_dict()
    state["param_groups"][0].setdefault("decoupled_weight_decay", True)  # for torch 2.6
    same = measure_sharpness(problem, options=options, update=state).critical
    assert same == found
    # the training itself is the oracle: a step just below the bracket, and one just above it
    for end, rises in ((found.learning_rate.low, False), (found.learning_rate.high, True)):
        model = copy.deepcopy(problem.model)
        stepped = torch.optim.AdamW(model.parameters(), lr=1e-2)
        stepped.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        stepped.param_groups[0]["lr"] = end
        before = loss_of(problem, model)
        before.backward()
        stepped.step()
        assert (loss_of(problem, model) > before).item() == rises
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["num_passes"] <= 10
    assert content["reason"] is None


def test_what_has_no_critical_rate_says_why():
    problem, _, gradient = quadratic()
    uphill = critical_sharpness(Objective(problem), -gradient)
    assert uphill.value.kind == "undefined"
    assert "downhill" in uphill.reason

    def straight(outputs, targets):
        return 1e3 + outputs[:, 0]  # falls for ever

    endless = Problem(model=problem.model, loss=straight, train=problem.train)
    found = critical_sharpness(Objective(endless))
    assert found.value.kind == "bound"
    assert math.isinf(found.learning_rate.high)
    assert "still falls" in found.reason
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_fall_below_the_rounding_is_not_believed():
    problem, _, _ = quadratic()
    flat = Problem(
        model=problem.model,
        loss=lambda outputs, targets: 1e6 + 1e-7 * (outputs - targets).square()[:, 0],
        train=problem.train,
    )
    found = critical_sharpness(Objective(flat, dtype=torch.float32))
    assert found.value.kind != "interval" or found.value.high / found.value.low > 2


def test_where_the_loss_is_not_finite_the_search_goes_back():
    problem, hessian, gradient = quadratic()

    def walled(outputs, targets):
        losses = (outputs - targets).square()[:, 0]
        return torch.where(outputs[:, 0].abs() > 30, torch.inf, losses)

    expected = float(gradient @ hessian @ gradient / (gradient @ gradient))
    found = critical_sharpness(
        Objective(Problem(model=problem.model, loss=walled, train=problem.train)), start=1e3
    )
    assert found.value.value == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start": -1.0}, "start -1.0: give a learning rate above 0"),
        ({"rtol": 0}, "rtol 0: give a number between 0 and 1"),
        ({"max_passes": 0}, "max passes 0: give 1 or more"),
        ({"update": torch.ones(2)}, r"an update of shape \(2,\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(SettingError, match=message):
        critical_sharpness(Objective(quadratic()[0]), **arguments)


def test_optimizers_whose_steps_are_unknown_are_refused():
    problem = network()
    params = {name: param.detach() for name, param in problem.model.named_parameters()}
    signs = torch.optim.Rprop(problem.model.parameters())
    loss_of(problem, problem.model).backward()
    signs.step()  # from here on its steps are no longer those of its rate
    for optimizer, message in (
        (torch.optim.LBFGS(problem.model.parameters()), "makes no step of a gradient alone"),
        (signs, "not in proportion"),
    ):
        with pytest.raises(SettingError, match=message):
            next_update(optimizer, problem.model, params, params)
    with pytest.raises(SettingError, match="give a tensor of the shape"):
        next_update({"other": torch.ones(1)}, problem.model, params, params)
