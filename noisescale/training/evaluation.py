"""The mean loss on a set of examples and, of a classifier, accuracy and macro F1."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from noisescale.errors import NoisescaleError, SettingError, is_out_of_memory, own_words
from noisescale.problems.models import GhostBatchNorm
from noisescale.problems.problem import (
    Examples,
    LossFn,
    Source,
    Tree,
    WeightFn,
    call_model,
    check_weights,
    kind_of,
    weights_of,
)
from noisescale.statistics.display import counted, one_line
from noisescale.statistics.estimate import Estimate, undefined
from noisescale.statistics.scores.accuracy import accuracy_estimate
from noisescale.training.records.folder import nullable

# targets in a forward pass: activations stay near the cache, and memory is bounded. Of sequences
# each has many: 32 of 64 characters take half the time of 2,048
CHUNK = 2048
# Classes of a confusion matrix, whose cells are their square: a vocabulary has none
MOST_CLASSES = 1000


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """Scores of a model on N examples.

    Attributes:
        loss: the mean over the examples, by their weights where they have some; nan or inf where an
            output is not finite.
        confusion: counts (C, C), rows the true class, columns the predicted one; they sum to N.
            None where the outputs are no (B, C) with a class for each example as target.
    """

    loss: float
    confusion: np.ndarray | None

    def __repr__(self) -> str:
        if self.confusion is None:
            return one_line(self, f"loss {self.loss:.4g}", "no classes")
        return one_line(
            self,
            f"loss {self.loss:.4g}",
            f"accuracy {self.accuracy:.4g}",
            f"f1 {self.f1:.4g}",
            counted(int(self.confusion.sum()), "example"),
        )

    @property
    def accuracy(self) -> float:
        """The share of the examples whose largest output is that of their class; nan of none."""
        if self.confusion is None:
            return math.nan
        return float(np.trace(self.confusion) / self.confusion.sum())

    @property
    def accuracy_estimate(self) -> Estimate:
        """The accuracy with Wilson's 95 % interval, of these examples as a sample; else undefined.

        How another seed's model would score is no part of it.
        """
        if self.confusion is None:
            return undefined(num_samples=0)
        return accuracy_estimate(int(np.trace(self.confusion)), int(self.confusion.sum()))

    @property
    def f1(self) -> float:
        """Macro F1: the mean over classes of 2·TP/(2·TP + FP + FN).

        Classes neither present nor predicted are left out, and a class never hit counts as 0, as in
        `sklearn.metrics.f1_score(average="macro", zero_division=0)`; nan without classes.
        """
        if self.confusion is None:
            return math.nan
        hits = np.diag(self.confusion)  # (C,)
        present_and_predicted = self.confusion.sum(0) + self.confusion.sum(1)  # 2·TP + FP + FN
        counted = present_and_predicted > 0
        return float(np.mean(2 * hits[counted] / present_and_predicted[counted]))

    def stored(self) -> dict[str, Any]:
        """The scores for strict JSON, each that is None with the reason beside it.

        An accuracy has the number of examples and the ends of its interval with it.
        """
        scores: dict[str, Any] = nullable(
            {"loss": self.loss, "accuracy": self.accuracy, "f1": self.f1}
        )
        if self.confusion is None:
            why = "the outputs are no table (B, C) with a class as target for each example"
            return scores | {f"{name}_null_because": why for name in ("accuracy", "f1")}
        interval = self.accuracy_estimate
        return scores | {
            "accuracy_low": interval.low,
            "accuracy_high": interval.high,
            "num_examples": interval.num_samples,
        }


@torch.no_grad()
def mean_loss(
    model: nn.Module, loss: LossFn, examples: Source, weights: WeightFn | None = None
) -> float:
    """The mean loss of `model` in evaluation mode (restored afterwards) over `examples`.

    Args:
        model: called with the examples' inputs.
        loss: outputs, targets -> (B,), one loss per example.
        examples: N of them.
        weights: targets -> (B,), what each counts for in the mean; None: all alike.

    Raises:
        SettingError: the model, the loss or the weights fail, or give other shapes.
    """
    total = _Total(loss, weights)
    with _evaluation_mode(model):
        for chunk in _chunks(model, examples):
            total.add(model, chunk)
    return total.mean(examples.num_examples)


@torch.no_grad()
def evaluate(
    model: nn.Module, loss: LossFn, examples: Source, weights: WeightFn | None = None
) -> Evaluation:
    """The mean loss, and a classifier's confusion counts, in evaluation mode, chunk by chunk.

    The loss is summed in float64 and divided once, so that a short last chunk carries its own
    weight. Argmax over outputs that are nan returns class 0: a diverged model "predicts" class 0
    throughout.

    Args:
        model: maps inputs to outputs; its mode is restored afterwards. It counts as a classifier
            where outputs are (B, C), of 1,000 classes at most, and targets class indices (B,).
        loss: outputs, targets -> (B,), one loss per example.
        examples: N of them.
        weights: targets -> (B,), what each counts for in the mean loss; None: all alike.

    Raises:
        SettingError: the model, the loss or the weights fail, or give other shapes.

    Examples:
        >>> from noisescale import ProblemConfig, build_problem, evaluate
        >>> problem = build_problem(ProblemConfig(dataset="digits", width=16))
        >>> evaluate(problem.model, problem.loss, problem.test)
        Evaluation(loss 2.309, accuracy 0.132, f1 0.04619, 250 examples)
    """
    total = _Total(loss, weights)
    confusion: Tensor | None = None
    classifies = True
    with _evaluation_mode(model):
        for chunk in _chunks(model, examples):
            outputs = total.add(model, chunk)
            classifies = classifies and _are_classes(outputs, chunk.targets)
            if classifies:
                num_classes = outputs.shape[1]
                # (B,), of the matrix laid flat
                cells = chunk.targets.long() * num_classes + outputs.argmax(1)
                counts = torch.bincount(cells, minlength=num_classes**2)
                counts = counts.reshape(num_classes, num_classes)  # (C·C,) -> (C, C)
                confusion = counts if confusion is None else confusion + counts
    counted = confusion.cpu().numpy() if classifies and confusion is not None else None
    return Evaluation(loss=total.mean(examples.num_examples), confusion=counted)


class ExampleScores(NamedTuple):
    """What a model scores on each of N examples.

    Attributes:
        losses: (N,), float64, not weighted.
        correct: (N,), whether the largest output is that of its class; None where the outputs are
            no classes.
        counts: (N,), what each counts for in the mean loss; None: all alike.
    """

    losses: np.ndarray
    correct: np.ndarray | None
    counts: np.ndarray | None

    @property
    def loss(self) -> float:
        """The mean loss, by the weights where there are some."""
        return float(np.average(self.losses, weights=self.counts))


@torch.no_grad()
def score_examples(
    model: nn.Module, loss: LossFn, examples: Source, weights: WeightFn | None = None
) -> ExampleScores:
    """The loss of each example by itself, and whether it is classified right; as `evaluate` does.

    Args:
        model: maps inputs to outputs; its mode is restored afterwards.
        loss: outputs, targets -> (B,), one loss per example.
        examples: N of them.
        weights: targets -> (B,), what each counts for in the mean loss; None: all alike.

    Raises:
        SettingError: the model, the loss or the weights fail, or give other shapes.
    """
    losses, correct, counts = [], [], []
    with _evaluation_mode(model):
        for chunk in _chunks(model, examples):
            outputs, of_chunk = _outputs_and_losses(model, loss, chunk)
            losses.append(of_chunk.double())
            if _are_classes(outputs, chunk.targets):
                correct.append(outputs.argmax(1) == chunk.targets)
            if weights is not None:
                values = weights_of(weights, chunk.targets).double()
                check_weights(values)
                counts.append(values)
    return ExampleScores(
        losses=torch.cat(losses).cpu().numpy(),
        correct=torch.cat(correct).cpu().numpy() if len(correct) == len(losses) else None,
        counts=torch.cat(counts).cpu().numpy() if counts else None,
    )


@torch.no_grad()
def renew_batch_statistics(model: nn.Module, examples: Source) -> None:
    """Sets the running statistics of batch norms to the means of batches of these examples.

    Of 2,048 at a time, each batch with its share; what else differs in training mode, as dropout,
    stays as in evaluation mode. Weights that no training has led to have statistics of their own.

    Args:
        model: changed in place; without batch norm, nothing is done.
        examples: the training examples.
    """
    norms = [
        module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    if not norms:
        return
    momenta = [(norm, norm.momentum) for norm in norms]
    sizes = [(norm, norm.ghost_size) for norm in norms if isinstance(norm, GhostBatchNorm)]
    seen = 0
    try:
        with _evaluation_mode(model):
            for norm in norms:
                norm.train()
            for ghost, _ in sizes:
                ghost.ghost_size = CHUNK  # one part
            for chunk in _chunks(model, examples):
                if chunk.num_examples < 2:  # which have no variance
                    continue
                seen += chunk.num_examples
                for norm in norms:
                    norm.momentum = chunk.num_examples / seen  # the mean over all so far
                call_model(model, chunk.inputs)
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
        for ghost, size in sizes:
            ghost.ghost_size = size


def _outputs_and_losses(model: nn.Module, loss: LossFn, chunk: Examples) -> tuple[Any, Tensor]:
    """What the model makes of some examples, and their losses (B,); SettingError where it fails."""
    try:
        outputs = call_model(model, chunk.inputs)
        losses = loss(outputs, chunk.targets)
    except NoisescaleError:
        raise
    except Exception as error:  # whatever a model or a loss of the user's own raises
        if is_out_of_memory(error):
            raise
        raise SettingError(
            f"{type(model).__name__} or its loss fails on {chunk.num_examples} examples: "
            f"{own_words(error)}"
        ) from error
    check_losses(losses, chunk.num_examples)
    return outputs, losses


class _Total:
    """The sum of the losses of some examples and of what these count for, chunk by chunk."""

    def __init__(self, loss: LossFn, weights: WeightFn | None) -> None:
        self._loss = loss
        self._weights = weights
        self._losses: list[Tensor] = []
        self._counts: list[Tensor] = []

    def add(self, model: nn.Module, chunk: Examples) -> Any:
        """Takes in a chunk, whose outputs are returned; SettingError where they cannot be had."""
        outputs, losses = _outputs_and_losses(model, self._loss, chunk)
        if self._weights is not None:
            counts = weights_of(self._weights, chunk.targets).to(torch.float64)
            check_weights(counts)
            self._counts.append(counts.sum())
            losses = losses * counts
        self._losses.append(losses.sum(dtype=torch.float64))
        return outputs

    def mean(self, num_examples: int) -> float:
        """The mean over the N examples; nan where all of them count nothing."""
        total = float(torch.stack(self._losses).sum())
        if self._weights is None:
            return total / num_examples
        count = float(torch.stack(self._counts).sum())
        return total / count if count else math.nan


def check_losses(losses: object, num_examples: int) -> None:
    """SettingError unless this is one real loss for each example, (B,).

    Args:
        losses: what the loss has returned.
        num_examples: B.
    """
    is_complex = isinstance(losses, Tensor) and losses.is_complex()
    if not isinstance(losses, Tensor) or losses.shape != (num_examples,) or is_complex:
        form = kind_of(losses)
        if isinstance(losses, Tensor):
            form = f"{'complex numbers of ' * is_complex}shape {tuple(losses.shape)}"
        raise SettingError(
            f"the loss gives {form} for {num_examples} examples: return one real loss per example, "
            f'shape ({num_examples},), as reduction="none" does'
        )


def _are_classes(outputs: Any, targets: Tree) -> bool:
    """Whether each example has a class (B,), and an output for every class there is (B, C)."""
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)):
        return False
    is_table = outputs.ndim == 2 and outputs.is_floating_point()
    if not is_table or targets.ndim != 1 or targets.dtype.is_floating_point or targets.is_complex():
        return False
    num_classes = outputs.shape[1]
    if targets.dtype == torch.bool or not 1 < num_classes <= MOST_CLASSES:
        return False
    return bool((targets.min() >= 0) & (targets.max() < num_classes))


def _chunks(model: nn.Module, examples: Source) -> Iterator[Examples]:
    """The examples, some at a time, on the model's device."""
    device = next(model.parameters()).device
    size = CHUNK
    if isinstance(examples, Examples):
        targets: Tensor = tree_leaves(examples.targets)[0]
        size = max(1, CHUNK * examples.num_examples // max(targets.numel(), 1))
    for start in range(0, examples.num_examples, size):
        yield examples.part(slice(start, start + size)).to(device)


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
