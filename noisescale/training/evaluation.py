"""Loss, accuracy and macro F1 of a classifier on a set of examples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from noisescale.problems.problem import Examples, LossFn, Source, call_model
from noisescale.statistics.display import counted, one_line

# examples in a forward pass: activations stay near the cache, and memory is bounded
CHUNK = 2048


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """Scores of a classifier on N examples.

    Attributes:
        loss: the mean over the examples; nan or inf where an output is not finite.
        confusion: counts (C, C), rows the true class, columns the predicted one; they sum to N.
    """

    loss: float
    confusion: np.ndarray

    def __repr__(self) -> str:
        return one_line(
            self,
            f"loss {self.loss:.4g}",
            f"accuracy {self.accuracy:.4g}",
            f"f1 {self.f1:.4g}",
            counted(int(self.confusion.sum()), "example"),
        )

    @property
    def accuracy(self) -> float:
        """The share of the examples whose largest output is that of their class."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def f1(self) -> float:
        """Macro F1: the mean over classes of 2·TP/(2·TP + FP + FN).

        Classes neither present nor predicted are left out, and a class never hit counts as 0, as in
        `sklearn.metrics.f1_score(average="macro", zero_division=0)`.
        """
        hits = np.diag(self.confusion)  # (C,)
        present_and_predicted = self.confusion.sum(0) + self.confusion.sum(1)  # 2·TP + FP + FN
        counted = present_and_predicted > 0
        return float(np.mean(2 * hits[counted] / present_and_predicted[counted]))


@torch.no_grad()
def mean_loss(model: nn.Module, loss: LossFn, examples: Source) -> float:
    """The mean loss of `model` in evaluation mode (restored afterwards) over `examples`."""
    with _evaluation_mode(model):
        sums = [
            loss(call_model(model, chunk.inputs), chunk.targets).sum(dtype=torch.float64)
            for chunk in _chunks(model, examples)
        ]
    return float(torch.stack(sums).sum()) / examples.num_examples


@torch.no_grad()
def evaluate(model: nn.Module, loss: LossFn, examples: Source) -> Evaluation:
    """Loss and confusion counts of a classifier in evaluation mode, chunk by chunk.

    The loss is summed in float64 and divided by N, so that a short last chunk carries its own
    weight. Argmax over outputs that are nan returns class 0: a diverged model "predicts" class 0
    throughout.

    Args:
        model: maps inputs (B, *F) to outputs (B, C); its mode is restored afterwards.
        loss: outputs (B, C), targets (B,) -> (B,), one loss per example.
        examples: N of them, with class indices as targets.

    Example:
        >>> from noisescale import ProblemConfig, build_problem, evaluate
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> evaluate(problem.model, problem.loss, problem.test)
        Evaluation(loss 2.309, accuracy 0.132, f1 0.04619, 250 examples)
    """
    sums: list[torch.Tensor] = []
    confusion: torch.Tensor | None = None
    with _evaluation_mode(model):
        for chunk in _chunks(model, examples):
            outputs = call_model(model, chunk.inputs)  # (B, C)
            sums.append(loss(outputs, chunk.targets).sum(dtype=torch.float64))
            num_classes = outputs.shape[1]
            cells = chunk.targets * num_classes + outputs.argmax(1)  # (B,), of the matrix laid flat
            counts = torch.bincount(cells, minlength=num_classes**2)
            counts = counts.reshape(num_classes, num_classes)  # (C·C,) -> (C, C)
            confusion = counts if confusion is None else confusion + counts
    assert confusion is not None, "examples are never empty"
    total = torch.stack(sums).sum().item()
    return Evaluation(loss=total / examples.num_examples, confusion=confusion.cpu().numpy())


def _chunks(model: nn.Module, examples: Source) -> Iterator[Examples]:
    """The examples, some at a time, on the model's device."""
    device = next(model.parameters()).device
    for start in range(0, examples.num_examples, CHUNK):
        yield examples.part(slice(start, start + CHUNK)).to(device)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Puts the model into evaluation mode while open, each module back as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
