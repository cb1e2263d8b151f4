"""From configurations to the problem they describe, on a device."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from noisescale.problems.config import FactoryConfig, LossName, ProblemConfig
from noisescale.problems.data.splits import Splits, load_splits
from noisescale.problems.models import build_model
from noisescale.problems.problem import SPLITS, Examples, LossFn, Problem, as_examples, load_problem
from noisescale.problems.random_state import preserved_random_state


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """−log softmax(outputs)[target] of each example, in nats: logits (B, C), classes (B,) -> (B,)."""
    return F.cross_entropy(outputs, targets, reduction="none")


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ Σ_c (output_c − [c = target])² of each example: outputs (B, C), classes (B,) -> (B,).

    Half the sum, neither the mean over classes nor without the half, so that the loss has unit curvature in
    each output: the convention of Cohen et al. 2021 (arXiv 2103.00065), five times `mse_loss` at C = 10.
    """
    classes = torch.arange(outputs.shape[1], device=outputs.device)
    one_hot = targets.unsqueeze(1) == classes  # (B, C)
    return 0.5 * (outputs - one_hot.to(outputs.dtype)).square().sum(1)


LOSSES: dict[LossName, LossFn] = {"cross_entropy": cross_entropy, "mse": squared_error}


def chance_loss(name: LossName, targets: Tensor) -> float:
    """The mean loss over classes (n,) of the best output that is the same for every example."""
    shares = torch.bincount(targets).double() / len(targets)
    if name == "mse":
        return 0.5 * float((shares * (1 - shares)).sum())
    return float(torch.special.entr(shares).sum())


def build_problem(
    config: ProblemConfig,
    *,
    seed: int = 0,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
) -> Problem:
    """The problem `config` describes, its data and its model on `device`.

    The initial parameters are PyTorch's default initialisation under `seed`, drawn on the CPU so that they
    are the same on every device; no other random state is touched.
    """
    splits = load_splits(
        config.dataset,
        pixel_scale=config.pixel_scale,
        num_train=config.num_train,
        data_dir=data_dir,
        device=device,
    )
    return assemble_problem(config, splits, seed=seed)


def build_own_problem(config: FactoryConfig, *, seed: int = 0, device: torch.device | str = "cpu") -> Problem:
    """The problem that the user's factory makes, its model's random numbers drawn under `seed`.

    Data that the factory itself draws at random are those of seed 0 whatever the seed.
    """
    problem = _own_data(config, device)
    model = _call(config, seed).model if seed else copy.deepcopy(problem.model)
    return replace(problem, model=model.to(device))


@lru_cache(maxsize=1)  # many runs of a process are of one problem
def _own_data(config: FactoryConfig, device: torch.device | str) -> Problem:
    """The problem of seed 0, its data on the device."""
    problem = _call(config, 0)
    parts: dict[str, Any] = {
        split: Examples(*(values.to(device) for values in as_examples(data)))
        for split in SPLITS
        if (data := getattr(problem, split)) is not None
    }
    return replace(problem, **parts)


def _call(config: FactoryConfig, seed: int) -> Problem:
    with preserved_random_state():
        torch.manual_seed(seed)
        return load_problem(config.factory)


def assemble_problem(config: ProblemConfig, splits: Splits, *, seed: int = 0) -> Problem:
    """The problem `config` describes on data loaded already, its model where they are."""
    with preserved_random_state():
        torch.manual_seed(seed)
        model = build_model(config, splits.train.inputs.shape[1:], splits.num_classes)
    return Problem(
        model=model.to(splits.train.inputs.device),
        loss=LOSSES[config.loss],
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        config=config,
    )
