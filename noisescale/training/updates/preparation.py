"""A model made ready to be trained, and its optimizer."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from noisescale.errors import SettingError, first_line
from noisescale.training.config import TrainConfig


def trainable_copy(model: nn.Module) -> nn.Module:
    """A copy of a model in training mode, without gradients that may be stored in it.

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
        trained = copy_of(model).train()
    except (RuntimeError, TypeError) as error:
        raise SettingError(f"{name} cannot be copied: {first_line(error)}") from error
    trained.zero_grad()
    return trained


def copy_of(model: nn.Module) -> nn.Module:
    """A deep copy of any model.

    Tensors that an earlier forward pass left in it, such as the weight that
    torch.nn.utils.weight_norm computes, are copied as constants; the next pass computes them anew.

    Args:
        model: left as it is.
    """
    attributes = [vars(module) for module in model.modules()]
    computed = [
        value
        for value in torch.utils._pytree.tree_leaves(attributes)
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    with torch.no_grad():  # or the parameters of a ScriptModule's copy would be no leaves
        copied = copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})
    for param, original in zip(copied.parameters(), model.parameters(), strict=True):
        param.requires_grad_(original.requires_grad)
    return copied


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
    return adam(params, lr=rate, weight_decay=decay, capturable=capturable)


def make_gradients_dense(model: nn.Module) -> None:
    """Stores as dense tensors the sparse gradients of embeddings, which few optimizers take.

    Args:
        model: whose gradients are stored.
    """
    for param in model.parameters():
        if param.grad is not None and param.grad.is_sparse:
            param.grad = param.grad.to_dense()
