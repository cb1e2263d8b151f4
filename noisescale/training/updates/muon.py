"""Muon for the weights of hidden linear layers and AdamW for all else, as one optimizer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from noisescale.errors import SettingError
from noisescale.training.config import BETA1, TrainConfig

MUONS = "ns_steps"  # a setting that Muon's groups have alone


def check_muon(config: TrainConfig) -> None:
    """SettingError where Muon is asked for and the torch installed has none.

    Args:
        config: its optimizer.
    """
    if config.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise SettingError(
            f"optimizer muon: torch {torch.__version__} has no torch.optim.Muon; install torch 2.9 "
            "or later, or give adamw"
        )


def muon_names(model: nn.Module) -> set[str]:
    """The parameters that Muon updates: two-dimensional weights of hidden layers.

    Those of linear layers, packed ones of attention among them, but for the last layer's and what
    an embedding shares; as is the custom (Jordan et al. 2024), embeddings, the last layer, biases,
    norms and convolutions are AdamW's.

    Args:
        model: whose parameters they are.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = [module.weight for module in linear]
    weights += [
        module.in_proj_weight
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None
    ]
    others = [
        module.weight
        for module in model.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    ]
    others += [module.weight for module in linear[-1:]]
    hidden = {id(weight) for weight in weights} - {id(weight) for weight in others}
    return {
        name
        for name, param in model.named_parameters()
        if id(param) in hidden and param.requires_grad
    }


class MuonWithAdamW(Optimizer):
    """torch.optim.Muon and AdamW with one state and one learning rate.

    Muon's updates are scaled to the size of AdamW's ("match_rms_adamw", Liu et al. 2025, arXiv
    2502.16982), so that the rate and the weight decay are those of AdamW for both. Its groups are
    Muon's, then AdamW's.

    Args:
        model: whose parameters are trained, some of them by Muon.
        config: the rate, the weight decay and the options of both; beta1 is Muon's momentum.
        **options: of AdamW besides.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, **options: Any) -> None:
        check_muon(config)
        names = muon_names(model)
        if not names:
            raise SettingError(
                f"optimizer muon: {type(model).__name__} has no linear layer but the last one; "
                "give adamw"
            )
        hidden = [param for name, param in model.named_parameters() if name in names]
        rest = [param for name, param in model.named_parameters() if name not in names]
        shared: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        beta1 = BETA1["muon"] if config.beta1 is None else config.beta1
        self._muon: Optimizer = torch.optim.Muon(
            hidden, momentum=beta1, adjust_lr_fn="match_rms_adamw", **shared
        )
        self._adamw = AdamW(rest, **shared, **options)
        super().__init__([*self._muon.param_groups, *self._adamw.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Has both work on this optimizer's groups and state."""
        self._muon.param_groups = [group for group in self.param_groups if MUONS in group]
        self._adamw.param_groups = [group for group in self.param_groups if MUONS not in group]
        self._muon.state = self._adamw.state = self.state

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_muon": self._muon, "_adamw": self._adamw}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, whose parts are its own; `load_state_dict` gives no parts."""
        parts: dict[str, Any] = {
            name: copy.copy(state[name]) for name in ("_muon", "_adamw") if name in state
        }
        super().__setstate__({**state, **parts})
        self._share()

    def step(self, closure: Any = None) -> Any:
        """One update of all parameters from their gradients.

        Args:
            closure: none is taken.
        """
        assert closure is None, "a closure would be called twice"
        self._share()  # where groups or states were replaced, as of a copy
        self._muon.step()
        self._adamw.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over the state of another.

        Args:
            state_dict: what its `state_dict` gave.
        """
        super().load_state_dict(state_dict)
        self._share()
