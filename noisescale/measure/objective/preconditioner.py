"""The diagonal preconditioner of an adaptive optimizer, from its state."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noisescale.errors import CheckpointError, SettingError, check_file, first_line
from noisescale.problems.problem import Params, kind_of

# What a preconditioner may be given as: P by parameter, an optimizer, its state or a file of it
PreconditionerLike = Mapping[str, Any] | Optimizer | str | Path

NORMS = (
    *(nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._BatchNorm),
    nn.modules.instancenorm._InstanceNorm,
)
RELATIVE_RATE = "relative rate"  # of a group
RECTIFIED = 5.0  # length of the average of second moments above which RAdam divides by them
Source = Literal["exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"]


class ParameterState(NamedTuple):
    """What an optimizer keeps of one parameter, and the settings of the group that it is in."""

    state: Mapping[str, Any]
    group: Mapping[str, Any]


def preconditioner_of(given: PreconditionerLike, model: nn.Module) -> Params:
    """The diagonal P, by parameter, with which an optimizer multiplies a gradient.

    Adam and AdamW (Kingma and Ba 2015, algorithm 1): P = 1/(√v̂ + ε) with v̂ = v/(1 − β₂ᵗ), and
    with amsgrad, as torch has it, the largest v so far in v's place; RMSprop: 1/(√v + ε), centred
    1/(√(v − ḡ²) + ε); Adagrad: 1/(√Σg² + ε). Where groups of parameters have learning rates of
    their own, P has these in it, over the largest. The momentum of Adam has no part in it. A scale
    that all of P has in common leaves every noise scale as it is.

    A state that names its parameters, as that of an optimizer made of `model.named_parameters()`,
    is read by those names. Else one of a single group is read in the model's order, one of several
    as Hugging Face's Trainer or nanoGPT divide them: weights that decay, then biases and norms;
    and the shapes are compared.

    Args:
        given: P itself, a positive tensor by parameter's name; an optimizer of this model's
            parameters; what its state_dict() returns; or a file of that, such as optimizer.pt,
            which is read with weights_only=True.
        model: whose parameters they are.

    Returns:
        P by name, of all of the model's parameters that are trained, float64, on their devices.

    Raises:
        SettingError: an optimizer without second moments, as SGD, one that has made no step, one
            whose P is another, as Adadelta's, complex parameters, or P that is not positive, or of
            other shapes than the parameters.
        CheckpointError: a file that cannot be read.

    Examples:
        >>> import torch
        >>> from noisescale import preconditioner_of
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.Adam(model.parameters(), eps=0.0)
        >>> model(torch.tensor([[1.0, 4.0]])).sum().backward()
        >>> optimizer.step()  # whose second moments are then the squared gradient
        >>> preconditioner_of(optimizer, model)
        {'weight': tensor([[1.0000, 0.2500]], dtype=torch.float64)}
    """
    params: Params = {
        name: param for name, param in model.named_parameters() if param.requires_grad
    }
    if isinstance(given, str | Path):
        given = read_optimizer_state(Path(given))
    if not isinstance(given, Optimizer | Mapping):
        raise SettingError(
            f"a preconditioner of {kind_of(given)}: give tensors by parameter, an optimizer, its "
            "state_dict(), or a file of that"
        )
    if isinstance(given, Mapping) and not is_optimizer_state(given):
        return _checked(given, params)
    if isinstance(given, Mapping) and not has_second_moments(given):
        raise SettingError(
            "the optimizer's state has no second moments: it keeps none, as SGD and Adamax, or has "
            "made no step"
        )
    states = states_by_name(given, model)
    return _checked({name: diagonal_of(name, *of_one) for name, of_one in states.items()}, params)


def is_optimizer_state(given: Mapping[str, Any]) -> bool:
    """Whether a mapping is what `Optimizer.state_dict()` returns.

    Args:
        given: anything by name.
    """
    return "state" in given and "param_groups" in given


def states_by_name(
    given: Optimizer | Mapping[str, Any], model: nn.Module
) -> dict[str, ParameterState]:
    """What an optimizer keeps of each parameter that is trained, in the model's order.

    The groups have their learning rate over the largest as `RELATIVE_RATE`.

    Args:
        given: the optimizer of this model's parameters, or its state_dict().
        model: whose parameters they are.

    Raises:
        SettingError: it is of other parameters.
    """
    params: Params = {
        name: param for name, param in model.named_parameters() if param.requires_grad
    }
    if isinstance(given, Optimizer):
        return _of_optimizer(given, params)
    return _of_state(given, params, model)


def read_optimizer_state(path: Path) -> dict[str, Any]:
    """The state dict of an optimizer in a file of torch.save, no code in it run.

    Args:
        path: of the file, such as Hugging Face's optimizer.pt, or a checkpoint that has the state
            under "optimizer" or "optimizer_state_dict".

    Raises:
        CheckpointError: no such file, or one that holds no optimizer's state.
    """
    check_file(path, CheckpointError)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no {path}") from error
    except (OSError, RuntimeError, UnpicklingError, ValueError, EOFError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read as an optimizer's state: {first_line(error)}"
        ) from error
    for name in ("optimizer", "optimizer_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if not (isinstance(content, dict) and is_optimizer_state(content)):
        raise CheckpointError(
            f"{path} holds no optimizer's state: save optimizer.state_dict() with torch.save"
        )
    return content


def by_leaf(preconditioner: Params, leaves: Params) -> Params:
    """P of what an objective differentiates, in its precision; of complex numbers, of both parts.

    Args:
        preconditioner: by parameter of the model.
        leaves: as `Objective.params` gives them.

    Raises:
        SettingError: a parameter that has none, as of the loss.
    """
    found: Params = {}
    for name, leaf in leaves.items():
        if name not in preconditioner:
            raise SettingError(
                f"the preconditioner lacks {name}: give all parameters that are measured, or name "
                "those that it has as param_filter"
            )
        values = preconditioner[name].to(leaf)
        if values.ndim < leaf.ndim:
            values = values.unsqueeze(-1)
        found[name] = values.expand(leaf.shape).contiguous()
    return found


def has_second_moments(state: Mapping[str, Any]) -> bool:
    """Whether an optimizer's state dict has what a preconditioner is made of.

    Args:
        state: as `Optimizer.state_dict()` returns it.
    """
    return any(_second_moment(of_one) is not None for of_one in state["state"].values())


def _of_optimizer(optimizer: Optimizer, params: Params) -> dict[str, ParameterState]:
    """The states of a live optimizer of these very parameters."""
    found: dict[str, ParameterState] = {}
    # how a weight decay acts, which an Adam of torch 2.6 says by its class alone
    said = {"decoupled_weight_decay": isinstance(optimizer, torch.optim.AdamW)}
    groups = {
        id(param): (said if "amsgrad" in group else {}) | group
        for group in with_relative_rates(optimizer.param_groups)
        for param in group["params"]
    }
    for name, param in params.items():
        if id(param) not in groups:
            raise SettingError(
                f"the optimizer has no parameter {name}: give the one that trains this model, or "
                "its state_dict()"
            )
        found[name] = ParameterState(optimizer.state.get(param, {}), groups[id(param)])
    return found


def _of_state(
    state: Mapping[str, Any], params: Params, model: nn.Module
) -> dict[str, ParameterState]:
    """The states in a state dict, whose parameters are numbers, matched with the model's."""
    by_number = state["state"]
    groups = with_relative_rates(state["param_groups"])
    numbers = [number for group in groups for number in group["params"]]
    every = dict(model.named_parameters())  # frozen ones too, which an optimizer may have
    for names in _orders(groups, params, model):
        if len(names) == len(numbers) and all(
            _fits(by_number.get(number, {}), every[name])
            for number, name in zip(numbers, names, strict=True)
        ):
            break
    else:
        raise SettingError(
            f"the optimizer's state is of {len(numbers)} parameters that are not, or not in a "
            f"known order, the {len(params)} of the model: give the optimizer itself, or make it "
            "of model.named_parameters(), whose names its state then has"
        )
    name_of = dict(zip(numbers, names, strict=True))
    found = {
        name_of[number]: ParameterState(by_number.get(number, {}), group)
        for group in groups
        for number in group["params"]
    }
    return {name: found[name] for name in params}


def _orders(
    groups: Sequence[Mapping[str, Any]], params: Params, model: nn.Module
) -> Iterator[list[str]]:
    """The orders in which an optimizer may have the model's parameters, the likeliest first."""
    if all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
        if set(params) <= set(names) <= {name for name, _ in model.named_parameters()}:
            yield names
        return
    if len(groups) > 1:
        of_norms = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules()
            if isinstance(module, NORMS) or "norm" in type(module).__name__.lower()
            for name, _ in module.named_parameters(recurse=False)
        }
        rules: tuple[Callable[[str], bool], ...] = (
            lambda name: name not in of_norms and not name.endswith("bias"),  # Hugging Face
            lambda name: params[name].ndim >= 2,  # nanoGPT
        )
        for decays in rules:
            first = [name for name in params if decays(name)]
            if len(first) == len(groups[0]["params"]):
                yield [*first, *(name for name in params if not decays(name))]
    every = dict(model.named_parameters())  # frozen ones too
    for names in (list(params), list(every)):
        if _shapes_tell(groups, [every[name].shape for name in names]):
            yield names


def _shapes_tell(groups: Sequence[Mapping[str, Any]], shapes: Sequence[torch.Size]) -> bool:
    """Whether no two groups have parameters of one shape, which might have changed places."""
    group_of: dict[torch.Size, set[int]] = defaultdict(set)
    numbers = [index for index, group in enumerate(groups) for _ in group["params"]]
    for shape, index in zip(shapes, numbers, strict=False):  # a false count fits nothing
        group_of[shape].add(index)
    return all(len(indices) == 1 for indices in group_of.values())


def _fits(state: Mapping[str, Any], param: Tensor) -> bool:
    """Whether a parameter's state has its shape, where it has any."""
    names = ("momentum_buffer", "exp_avg", "exp_avg_sq", "square_avg", "sum")
    kept = [state[name] for name in names if isinstance(state.get(name), Tensor)]
    return all(tensor.shape == param.shape for tensor in kept)


def _second_moment(state: Mapping[str, Any]) -> Source | None:
    """The name of the second moments in a parameter's state; None where there are none."""
    names: tuple[Source, ...] = ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum")
    return next((name for name in names if isinstance(state.get(name), Tensor)), None)


def diagonal_of(
    name: str,
    state: Mapping[str, Any],
    group: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """P of one parameter, a new tensor, without waiting for a device.

    Args:
        name: of the parameter, for messages.
        state: of the parameter, as an optimizer keeps it.
        group: of the parameter, one of `with_relative_rates`.
        dtype: in which to compute.

    Raises:
        SettingError: no second moments, or those of an optimizer whose P is not known here.
    """
    moment = _second_moment(state)
    if moment is None:
        raise SettingError(
            f"the optimizer has no second moments of {name}: it keeps none, as SGD and Adamax, or "
            "has made no step"
        )
    if "acc_delta" in state or state[moment].is_complex() or _is_unrectified(state, group):
        what = "complex numbers"
        if not state[moment].is_complex():
            what = "Adadelta" if "acc_delta" in state else "RAdam's first steps"
        raise SettingError(
            f"the optimizer's state of {name} is of {what}, of which no preconditioner is known "
            "here: give P itself, a tensor by parameter"
        )
    second = state[moment].detach().to(dtype)
    if isinstance(average := state.get("grad_avg"), Tensor):  # RMSprop, centred
        second = (second - average.detach().to(dtype).square()).clamp(min=0)
    if moment in ("exp_avg_sq", "max_exp_avg_sq"):
        decay = float(group.get("betas", (0.9, 0.999))[1])
        # the count may lie on a device; in float32 1 − β₂ would lose three digits of seven
        steps = torch.as_tensor(state["step"]).double()
        second = second / (1 - decay**steps)
    if group[RELATIVE_RATE] == 0:
        raise SettingError(
            f"the learning rate of {name} is zero: leave it out by requires_grad_(False)"
        )
    diagonal: Tensor = group[RELATIVE_RATE] / (second.sqrt() + float(group.get("eps", 1e-8)))
    return diagonal


def _is_unrectified(state: Mapping[str, Any], group: Mapping[str, Any]) -> bool:
    """Whether it is RAdam's before its steps are divided by second moments (Liu et al. 2020)."""
    is_radam = "betas" in group and "amsgrad" not in group and "momentum_decay" not in group
    if not is_radam or "step" not in state:
        return False
    decay, steps = float(group["betas"][1]), float(state["step"])
    remembered: float = 1 - decay**steps
    return 2 / (1 - decay) - 1 - 2 * steps * (1 - remembered) / remembered <= RECTIFIED


def with_relative_rates(groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The groups with their learning rates over the largest; 1 where none has one above zero.

    Args:
        groups: param_groups of an optimizer or of its state.
    """
    rates = [float(group.get("lr", 1.0)) for group in groups]
    largest = max(rates, default=0.0) or 1.0
    return [
        {**group, RELATIVE_RATE: rate / largest if any(rates) else 1.0}
        for group, rate in zip(groups, rates, strict=True)
    ]


def _checked(given: Mapping[str, Any], params: Params) -> Params:
    """P of all parameters, float64; SettingError where it is no such."""
    if missing := sorted(set(params) - set(given)):
        raise SettingError(
            f"the preconditioner lacks {', '.join(missing[:3])}: give a tensor for each of the "
            f"{len(params)} parameters"
        )
    found: Params = {}
    for name, param in params.items():
        values = torch.as_tensor(given[name]).detach().to(param.device, torch.float64)
        if values.numel() != 1 and values.shape != param.shape:
            raise SettingError(
                f"the preconditioner of {name} has the shape {tuple(values.shape)}: give "
                f"{tuple(param.shape)}, the parameter's own"
            )
        if not (values.isfinite().all() and (values > 0).all()):
            raise SettingError(
                f"the preconditioner of {name} is not positive and finite throughout: give 1 over "
                "what the gradient is divided by, such as 1/(√v + ε) with an ε above 0"
            )
        found[name] = values.expand(param.shape)
    return found
