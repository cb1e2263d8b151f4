"""From configurations to the problem they describe, on a device."""

from __future__ import annotations

from pathlib import Path

import torch

from noisescale.problems.config import ProblemConfig
from noisescale.problems.data.splits import Splits, splits_of
from noisescale.problems.models import LOSSES, build_model, sequence_cross_entropy
from noisescale.problems.problem import Problem
from noisescale.problems.random_state import preserved_random_state


def build_problem(
    config: ProblemConfig,
    *,
    seed: int = 0,
    data_dir: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Problem:
    """The problem that a configuration describes, its data and its model on one device.

    The initial parameters are PyTorch's default initialisation under `seed`, drawn on the CPU so
    that they are the same on every device; no other random state is touched.

    Args:
        config: the data set, the model and the loss.
        seed: of the initial parameters.
        data_dir: where the data sets' files are; None: $NOISESCALE_DATA, else the user's cache.
        device: of the data and the model.

    Returns:
        The problem, all three of its splits there, each as Examples.

    Raises:
        DataError: files of the data set are damaged or cannot be fetched.
        SettingError: a subset larger than the data set, a model that its images do not fit, or a
            text that is too short.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> problem.train
        Examples(inputs (1297, 1, 8, 8), targets (1297,))
    """
    splits = splits_of(config, data_dir=data_dir, device=device)
    return assemble_problem(config, splits, seed=seed)


def assemble_problem(config: ProblemConfig, splits: Splits, *, seed: int = 0) -> Problem:
    """The problem that `config` describes on data loaded already, its model where these are."""
    with preserved_random_state():
        torch.manual_seed(seed)
        model = build_model(config, splits.train.inputs.shape[1:], splits.num_classes)
    return Problem(
        model=model.to(splits.train.inputs.device),
        loss=sequence_cross_entropy if config.is_text else LOSSES[config.loss],
        train=splits.train,
        validation=splits.validation,
        test=splits.test,
        units=config.units_per_example,
        config=config,
    )
