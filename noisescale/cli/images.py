"""The examples that carry the most noise, where they are images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from noisescale.problems.sampling import part_of, split_data

if TYPE_CHECKING:
    from noisescale.problems.problem import Problem
    from noisescale.statistics.gradient_noise import NoiseScale

Image = tuple[np.ndarray, str]  # (H, W) or (H, W, 3) from 0 to 1, and a caption
COLOURS = 3


def noisiest_images(problem: Problem, noise: NoiseScale) -> list[Image]:
    """The examples with the largest shares of tr Σ as images; none where they are no images.

    Args:
        problem: whose examples they are.
        noise: measured on its split, with top_examples.
    """
    rows = noise.top_examples
    if rows is None or noise.split is None:
        return []
    chosen = torch.tensor(rows["index"].to_numpy())
    inputs = part_of(split_data(problem, noise.split), chosen).inputs
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or inputs.shape[1] not in (1, COLOURS):
        return []
    inputs = inputs[:, 0] if inputs.shape[1] == 1 else inputs.permute(0, 2, 3, 1)
    values = inputs.detach().cpu().double().numpy()
    images = []
    for value, row in zip(values, rows.to_dict("records"), strict=True):
        spread = float(np.ptp(value))
        of_class = f"{row['target']}: " if "target" in row else ""
        caption = f"{of_class}{100 * row['share']:.2g} %"
        images.append(((value - value.min()) / (spread or 1.0), caption))
    return images
