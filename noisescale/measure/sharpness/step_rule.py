"""What an optimizer's settings say about the curvature at which its steps are stable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from noisescale.measure.objective.preconditioner import (
    RELATIVE_RATE,
    ParameterState,
    states_by_name,
)
from noisescale.problems.models import has_batch_norm
from noisescale.statistics.stability.limits import limit_of_averages, limit_of_heavy_ball

Kind = Literal["Adam", "AdamW", "RMSprop", "Adagrad"]
# What is left of the first moment's start, above which its bias correction is worth a note
CORRECTED = 0.01


@dataclass(frozen=True, kw_only=True)
class StepRule:
    """An adaptive optimizer's settings, as far as they decide over stability.

    Attributes:
        kind: what it is called; None: of none of the kinds that are known here.
        learning_rate: η, of its groups the largest, the others' ratio to it being in P.
        limit: the largest stable λ_max(P^½HP^½), H with the penalty in it; None: none is known.
        formula: of the limit.
        penalties: ω of the ½ω|θ|² whose gradient goes through P, by parameter; without zeros.
        notes: what a reader should know.
    """

    kind: Kind | None
    learning_rate: float
    limit: float | None
    formula: str | None
    penalties: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def step_rule(given: Optimizer | Mapping[str, Any], model: nn.Module) -> StepRule:
    """The rule of an optimizer, or of its state_dict().

    With P held fixed, Adam is gradient descent on the average m ← β₁m + (1 − β₁)g in coordinates
    P^(−½)θ, stable up to (2 + 2β₁)/((1 − β₁)η); RMSprop, with momentum μ, is the heavy ball, stable
    up to 2(1 + μ)/η (Cohen et al. 2022, arXiv 2207.14484, section 2). amsgrad and centring change P
    alone. The decay w of AdamW, beside the gradient, takes w(1 + β₁)/(1 − β₁) off; that of the
    others is a penalty in the loss, and in H.

    Args:
        given: the optimizer of this model's parameters, or its state_dict().
        model: whose parameters they are.

    Raises:
        SettingError: it is of other parameters.
    """
    states = states_by_name(given, model)
    kind = _kind_of(next(iter(states.values())).group)
    rate = max(_rate(of_one, kind) for of_one in states.values())
    notes: list[str] = []
    penalties = {}
    decays = [0.0]
    for name, (_, group) in states.items():
        decay = float(group.get("weight_decay", 0.0))
        if decay and kind == "AdamW":
            decays.append(decay * group[RELATIVE_RATE])
        elif decay:
            penalties[name] = decay
    if kind == "AdamW" and max(decays) and not _says_how(given):
        notes.append(
            "the optimizer's state does not say how its weight decay acts, which is taken to be "
            "beside the gradient, as AdamW's"
        )
    limit, formula = _limit(states, kind, rate, max(decays), notes)
    if has_batch_norm(model) and limit is not None:
        limit, formula = None, None
        notes.append(
            "no limit of stability is given: with batch norm, training descends another loss than "
            "the one measured"
        )
    return StepRule(
        kind=kind,
        learning_rate=rate,
        limit=limit,
        formula=formula,
        penalties=penalties,
        notes=tuple(notes),
    )


def _kind_of(group: Mapping[str, Any]) -> Kind | None:
    """What the optimizer is, by the settings of a group: amsgrad is Adam's alone."""
    if "betas" in group and "amsgrad" in group:
        return "AdamW" if group.get("decoupled_weight_decay", True) else "Adam"
    if "centered" in group:
        return "RMSprop"
    return "Adagrad" if "lr_decay" in group else None


def _says_how(given: Optimizer | Mapping[str, Any]) -> bool:
    """Whether it is known of an Adam whether its weight decay is decoupled."""
    return isinstance(given, Optimizer) or all(
        "decoupled_weight_decay" in group for group in given["param_groups"]
    )


def _rate(of_one: ParameterState, kind: Kind | None) -> float:
    """η of a parameter's group, at the step that it has come to."""
    rate = float(of_one.group.get("lr", 0.0))
    if kind == "Adagrad":
        made = max(float(of_one.state.get("step", 1)) - 1, 0.0)
        rate /= 1 + made * float(of_one.group["lr_decay"])
    return rate


def _limit(
    states: Mapping[str, ParameterState],
    kind: Kind | None,
    rate: float,
    decay: float,
    notes: list[str],
) -> tuple[float | None, str | None]:
    """The limit with its formula; None where there is none, for a reason that `notes` is told."""
    if kind is None:
        notes.append("no limit of stability is known for this optimizer")
        return None, None
    if rate == 0:
        notes.append("no limit of stability is given: the learning rate is zero")
        return None, None
    memories = {_memory(group, kind) for _, group in states.values()}
    if len(memories) > 1:
        notes.append("no limit of stability is given: groups differ in their momentum")
        return None, None
    (memory,) = memories
    if kind in ("RMSprop", "Adagrad"):
        formula = "2(1+μ)/η" if memory else "2/η"
        return limit_of_heavy_ball(rate, momentum=memory), formula
    left = max(memory ** float(state.get("step", 1)) for state, _ in states.values())
    if left > CORRECTED:
        notes.append(
            "the optimizer has made so few steps that its bias correction still enlarges them: "
            "the limit of stability is that of later ones"
        )
    formula = "(2+2β₁)/((1−β₁)η)" + (" − weight decay's part" if decay else "")
    limit = limit_of_averages(rate, beta=memory, weight_decay=decay)
    return (limit, formula) if limit > 0 else (None, None)


def _memory(group: Mapping[str, Any], kind: Kind) -> float:
    """β₁ of Adam, μ of RMSprop, 0 of Adagrad."""
    if kind in ("Adam", "AdamW"):
        return float(group["betas"][0])
    return float(group.get("momentum", 0.0))
