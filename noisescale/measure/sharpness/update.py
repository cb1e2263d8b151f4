"""What an optimizer's next step would change, at a learning rate of one."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noisescale.errors import SettingError, own_words
from noisescale.measure.objective.preconditioner import (
    RELATIVE_RATE,
    ParameterState,
    is_optimizer_state,
    states_by_name,
)
from noisescale.problems.problem import Params

# An optimizer whose steps are made, its state_dict(), or the update itself by parameter
UpdateLike = Optimizer | Mapping[str, Any]

# What is of the parameters themselves, or of how a step is computed and not of what it is
NOT_SETTINGS = ("params", "param_names", "initial_lr", RELATIVE_RATE)
PLAINLY = {"foreach": False, "fused": False, "capturable": False, "differentiable": False}
# How far half the step at half the rate may be off, in units of the step: an update that is no
# multiple of the rate is off by half of it or so
UNEVEN = 1e-3
BY_SETTING = {  # a setting of its groups that no optimizer before it in this list has
    "ns_coefficients": "Muon",
    "amsgrad": "AdamW",
    "centered": "RMSprop",
    "lr_decay": "Adagrad",
    "dampening": "SGD",
}


def next_update(given: UpdateLike, model: nn.Module, params: Params, gradient: Params) -> Params:
    """Δ of the step θ ← θ − ηΔ that an optimizer would make of a gradient, by parameter, float64.

    Momentum, second moments, bias corrections and weight decay are in it, as the optimizer's own
    `step` makes them, on copies; η is the largest of its groups' learning rates, whose ratios to it
    are in Δ.

    Args:
        given: the optimizer of this model's parameters, its state_dict(), or Δ itself.
        model: whose parameters they are.
        params: θ by name, of those that the gradient is of.
        gradient: by name.

    Raises:
        SettingError: an optimizer of other parameters, or one whose steps are not in proportion to
            its learning rate.
    """
    if isinstance(given, Mapping) and not is_optimizer_state(given):
        return {name: _given(given, name, values) for name, values in params.items()}
    states = states_by_name(given, model)
    if missing := [
        name
        for name, values in params.items()
        if name not in states or values.shape != model.get_parameter(name).shape
    ]:
        raise SettingError(
            f"the optimizer's next update of {missing[0]} is not known, since it is a parameter of "
            "the loss or complex: give the update itself, a tensor by parameter"
        )
    update, half = (
        _stepped(given, {name: states[name] for name in params}, params, gradient, scale)
        for scale in (1.0, 0.5)
    )
    for name, values in update.items():
        if float((2 * half[name] - values).norm()) > UNEVEN * float(values.norm()):
            raise SettingError(
                f"the steps of {type(given).__name__} are not in proportion to its learning rate: "
                "give the update itself, a tensor by parameter"
            )
    return update


def _given(given: Mapping[str, Any], name: str, values: Tensor) -> Tensor:
    update = given.get(name)
    if not isinstance(update, Tensor) or update.shape != values.shape:
        raise SettingError(
            f"the update of {name}: give a tensor of the shape {tuple(values.shape)} for it"
        )
    return update.detach().to(values.device, torch.float64)


def _stepped(
    given: UpdateLike,
    states: Mapping[str, ParameterState],
    params: Params,
    gradient: Params,
    scale: float,
) -> Params:
    """What a step at this learning rate takes from copies of the parameters."""
    leaves = {
        name: nn.Parameter(values.detach().double().clone()) for name, values in params.items()
    }
    groups = []
    kept: defaultdict[Tensor, Any] = defaultdict(dict)
    for name, leaf in leaves.items():
        state, group = states[name]
        leaf.grad = gradient[name].detach().double().clone()
        settings = {key: value for key, value in group.items() if key not in NOT_SETTINGS}
        plainly = {key: value for key, value in PLAINLY.items() if key in settings}
        rate = scale * group[RELATIVE_RATE]
        groups.append({**settings, **plainly, "params": [leaf], "lr": rate})
        kept[leaf] = {key: _copied(key, value) for key, value in state.items()}
    for optimizer in _with_groups(given, groups):
        optimizer.state = kept
        try:
            optimizer.step()
        except (TypeError, RuntimeError, KeyError, AttributeError) as error:  # as for a closure
            raise SettingError(
                f"{type(optimizer).__name__} makes no step of a gradient alone: "
                f"{own_words(error)}; give the update itself, a tensor by parameter"
            ) from error
    return {name: params[name].detach().double() - leaf.detach() for name, leaf in leaves.items()}


def _copied(key: str, value: Any) -> Any:
    """A part of a parameter's state, in float64 but for the number of steps."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    return value.clone() if key == "step" else value.double().clone()


def _with_groups(given: UpdateLike, groups: list[dict[str, Any]]) -> list[Optimizer]:
    """Optimizers of the same kind, of other parameters; of a state one for each kind in it."""
    if isinstance(given, Optimizer):
        other = copy.copy(given)
        other.param_groups = groups
        return [other]
    by_kind: defaultdict[Callable[[Any], Optimizer], list[dict[str, Any]]] = defaultdict(list)
    for group in groups:
        by_kind[_kind_of(group)].append(group)
    return [make(of_kind) for make, of_kind in by_kind.items()]


def _kind_of(group: Mapping[str, Any]) -> Callable[[Any], Optimizer]:
    """The optimizer of torch that a group with these settings is of."""
    name = next((kind for setting, kind in BY_SETTING.items() if setting in group), None)
    if name == "AdamW" and group.get("weight_decay") and "decoupled_weight_decay" not in group:
        raise SettingError(
            "the optimizer's state does not say how its weight decay acts, as Adam's or AdamW's: "
            "give the optimizer itself"
        )
    if name == "AdamW" and not group.get("decoupled_weight_decay", True):
        name = "Adam"
    if name is None or not hasattr(torch.optim, name):
        raise SettingError(
            "the optimizer's state does not say of which kind it is: give the optimizer itself"
        )
    kind: Callable[[Any], Optimizer] = getattr(torch.optim, name)
    return kind
