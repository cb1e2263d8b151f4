"""A model made ready to be trained, and its optimizer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from noisescale.errors import SettingError, first_line
from noisescale.problems.models import copy_of
from noisescale.problems.problem import check_not_lazy
from noisescale.training.config import BETA1, EPSILON, TrainConfig
from noisescale.training.updates.muon import MuonWithAdamW


def trainable_copy(model: nn.Module) -> nn.Module:
    """A copy of a model in training mode; gradients stored in the model are not copied.

    Args:
        model: left as it is.

    Raises:
        SettingError: the model cannot be copied, or has nothing to train.
    """
    name = type(model).__name__
    check_not_lazy(model)
    if not any(param.requires_grad for param in model.parameters()):
        raise SettingError(f"{name} has no parameter that requires a gradient: nothing to train")
    try:
        return copy_of(model).train()
    except (RuntimeError, TypeError) as error:
        raise SettingError(f"{name} cannot be copied: {first_line(error)}") from error


def build_optimizer(model: nn.Module, config: TrainConfig, *, capturable: bool) -> Optimizer:
    """The optimizer of a model's parameters.

    Args:
        model: whose parameters are trained.
        config: its optimizer, rate and what else that takes.
        capturable: whether its steps go into a CUDA graph.

    Raises:
        SettingError: Muon, which the torch installed does not have, or the model no use for.
    """
    params = model.parameters()
    shared: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.optimizer == "sgd":
        return torch.optim.SGD(params, momentum=config.momentum, nesterov=config.nesterov, **shared)
    beta2 = config.second_moment_decay
    assert beta2 is not None
    options: dict[str, Any] = {
        "eps": EPSILON[config.optimizer] if config.epsilon is None else config.epsilon,
        "capturable": capturable,
    }
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(params, alpha=beta2, **shared, **options)
    # on a CPU torch's one-pass update of each tensor is no default, and three times as fast
    fused = all(param.is_cpu and param.is_floating_point() for param in model.parameters())
    options["fused"] = True if fused else None
    if config.optimizer == "muon":
        return MuonWithAdamW(model, config, betas=(BETA1["adamw"], beta2), **options)
    beta1 = BETA1[config.optimizer] if config.beta1 is None else config.beta1
    adam = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return adam(params, betas=(beta1, beta2), **shared, **options)


def make_gradients_dense(params: Iterable[nn.Parameter]) -> None:
    """Stores as dense tensors the sparse gradients of embeddings, which few optimizers take.

    Args:
        params: whose gradients are stored; a list, where it is asked for at every step: to find
            them in a model takes longer than to look at them.
    """
    for param in params:
        gradient = param.grad
        if gradient is not None and gradient.is_sparse:
            param.grad = gradient.to_dense()
