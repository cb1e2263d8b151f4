"""A CNN on scikit-learn's digits: noisescale recommend examples/problems/cnn_digits.py:make."""

import torch
from sklearn.datasets import load_digits
from torch import nn

from noisescale import Examples, Problem


def make():
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # (1797, 1, 8, 8)
    classes = torch.tensor(digits.target)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 2 * 2, 10),
    )
    return Problem(
        model=model,
        loss=nn.CrossEntropyLoss(reduction="none"),
        train=Examples(images[:1500], classes[:1500]),
        test=Examples(images[1500:], classes[1500:]),
    )
