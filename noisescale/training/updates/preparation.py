"""A model made ready to be trained, and its optimizer."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from noisescale.errors import SettingError, first_line
from noisescale.problems.models import copy_of
from noisescale.training.config import TrainConfig


def trainable_copy(model: nn.Module) -> nn.Module:
    """A copy of a model in training mode; gradients stored in the model are not copied.

    Args:
        model: left as it is.

    Raises:
        SettingError: the model cannot be copied, or has nothing to train.
    """
    name = type(model).__name__
    if any(isinstance(param, UninitializedParameter) for param in model.parameters()):
        raise SettingError(f"{name} has lazy parameters: run it on one batch first")
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
        config: its optimizer, rate, momentum and weight decay.
        capturable: whether its steps go into a CUDA graph.
    """
    params, rate, decay = model.parameters(), config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(params, lr=rate, momentum=config.momentum, weight_decay=decay)
    adam = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    # on a CPU torch's one-pass update of each tensor is no default, and three times as fast
    fused = all(param.is_cpu and param.is_floating_point() for param in model.parameters())
    return adam(
        params, lr=rate, weight_decay=decay, capturable=capturable, fused=True if fused else None
    )


def make_gradients_dense(model: nn.Module) -> None:
    """Stores as dense tensors the sparse gradients of embeddings, which few optimizers take.

    Args:
        model: whose gradients are stored.
    """
    for param in model.parameters():
        if param.grad is not None and param.grad.is_sparse:
            param.grad = param.grad.to_dense()
