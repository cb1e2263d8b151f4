"""What the experiments on batch sizes measure alike of a model at the end of its run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from noisescale.problems.problem import Examples, Problem, held, source_of
from noisescale.problems.sampling import split_data
from noisescale.studies.jobs.cell import Cell
from noisescale.training.evaluation import evaluate
from noisescale.training.records.folder import nullable
from noisescale.training.trainer import Training

HELD_OUT = ("validation", "test")  # which together are the official test images


def identity(cell: Cell, training: Training) -> dict[str, Any]:
    """What every run's summary says of it."""
    return {
        "batch_size": cell.training.batch_size,
        "learning_rate": cell.training.learning_rate,
        "seed": cell.training.seed,
        "steps": training.step,
        "epochs": training.epoch,
        "diverged_at_step": training.diverged_at_step,
    }


def test_scores(problem: Problem, model: nn.Module) -> dict[str, Any]:
    """Loss and accuracy on all official test images, null where they are not finite."""
    parts = [
        evaluate(model, problem.loss, held(source_of(split_data(problem, split))))
        for split in HELD_OUT
    ]
    counts = [int(part.confusion.sum()) for part in parts if part.confusion is not None]
    correct = sum(int(np.trace(part.confusion)) for part in parts if part.confusion is not None)
    loss = float(np.average([part.loss for part in parts], weights=counts))
    return {
        **nullable({"test_loss": loss}),
        "test_accuracy": correct / sum(counts),
        "num_test": sum(counts),
    }


def train_scores(problem: Problem, model: nn.Module) -> dict[str, Any]:
    """Loss and accuracy on all training examples, null where they are not finite."""
    scores = evaluate(model, problem.loss, held(source_of(problem.train)))
    return nullable({"train_loss": scores.loss, "train_accuracy": scores.accuracy})


def with_all_held_out(problem: Problem) -> Problem:
    """The problem with all official test images for its test split."""
    parts = [held(source_of(split_data(problem, split))).part(slice(None)) for split in HELD_OUT]
    inputs, targets = (torch.cat([part[place] for part in parts]) for place in (0, 1))
    return replace(problem, validation=None, test=Examples(inputs, targets))
