"""A learning problem: a model, a loss per example and the examples."""

from __future__ import annotations

from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from noisescale.errors import LARGEST, SettingError, is_real, own_words
from noisescale.problems.config import AnyConfig
from noisescale.problems.data.examples import (
    Examples,
    Tree,
    arguments_of,
    call_model,
    check_examples,
    first_size,
    kind_of,
    shapes,
    with_dicts,
)
from noisescale.problems.data.loaders import Loader, parts_of
from noisescale.problems.data.reader import Reader
from noisescale.problems.data.stream import Source, Stream
from noisescale.statistics.display import counted, one_line

__all__ = [
    "SPLITS",
    "Data",
    "Examples",
    "LossFn",
    "MatVec",
    "Params",
    "Problem",
    "Source",
    "Tree",
    "WeightFn",
    "arguments_of",
    "as_examples",
    "call_model",
    "first_size",
    "held",
    "kind_of",
    "num_examples_of",
    "resident",
    "shapes",
    "source_of",
    "units_per_example",
    "weights_of",
]

Params = dict[str, Tensor]  # by name, as model.named_parameters() gives them
LossFn = Callable[[Any, Any], Tensor]  # what the model returns, targets -> (B,)
WeightFn = Callable[[Any], Tensor]  # targets -> (B,)
MatVec = Callable[[Tensor], Tensor]  # v -> Hv, (P,) -> (P,)
# A split: tensors, or what is read item by item
Data = Source | Dataset[Any] | DataLoader[Any] | list[Any]

SPLITS = ("train", "validation", "test")
COUNTED = 4096  # examples whose units are counted at a time
SomeSource = TypeVar("SomeSource", Examples, Stream)


@dataclass(frozen=True, kw_only=True, repr=False)
class Problem:
    """What is trained and measured: a model, a loss for each example, and the examples.

    A split is given as Examples, or as a map-style Dataset of any length, which is read a part at a
    time: measurements of gradients never hold it, those of curvature, and training, hold up to
    1 GiB and else read it anew for every pass. Its items are pairs (input, target); tuples of more,
    whose last is the target and whose others are the model's inputs; or dicts, one of whose entries
    is the target (labels, label, targets, target or y, the first of these that there is) and whose
    others are the model's inputs by name. torch's default_collate makes batches of them.

    A DataLoader stands for its Dataset with its collate function, as for items of different
    lengths, and its workers; its batch size and its order are not used, and a sampler that draws
    some examples more often than others is refused.

    The loss of a batch is the mean of its examples' losses, (1/B) Σ ℓ_i; with `weights` it is Σ w_i
    ℓ_i/Σ w_i, of a batch, a subset and a whole split alike. So a language model whose loss is a
    mean over all tokens but the padding gives each sequence's mean as its loss, and the number of
    its tokens as its weight:

        def count(labels):  # (B, T) -> (B,)
            return (labels != -100).sum(1)

        def loss(logits, labels):  # (B, T, V), (B, T) -> (B,)
            each = cross_entropy(logits.mT, labels, ignore_index=-100, reduction="none")
            return each.sum(1) / count(labels).clamp(min=1)

        Problem(model=model, loss=loss, units=count, train=Examples(tokens, labels))

    which is as good as `weights=count`, and has batch sizes told in tokens as well.

    A model, a loss or weights of another kind raise SettingError.

    Attributes:
        model: a torch.nn.Module, called with the inputs (see `Examples`), B examples at a time,
            which it treats row by row unless it normalises over the batch. What it returns goes to
            the loss as it is.
        loss: the model's outputs, targets -> (B,): one loss for each example, not reduced.
        train: the training examples.
        validation: the same for the validation split; None: there is none.
        test: the same for the test split; None: there is none.
        weights: the targets -> (B,): what each example's loss counts for in that of a batch, zero
            or more, such as its number of valid tokens; None: all alike. The loss of an example
            that counts nothing must be finite all the same.
        units: how many units each example has, such as the tokens that count in its loss: the
            targets -> (B,), which are its weights as well unless these are given; or a number that
            all examples have. Batch sizes are then told in units too. The independent example stays
            the whole: tokens of one sequence share its context, and their gradients are
            correlated. None: not told.
        config: what the problem was built from, where that is known.

    Examples:
        >>> import torch
        >>> from noisescale import Examples, Problem
        >>> model = torch.nn.Linear(20, 3)
        >>> examples = Examples(torch.randn(500, 20), torch.randint(0, 3, (500,)))
        >>> Problem(model=model, loss=torch.nn.CrossEntropyLoss(reduction="none"), train=examples)
        Problem(Linear of 63 parameters, loss CrossEntropyLoss, train 500)
    """

    model: nn.Module
    loss: LossFn
    train: Data
    validation: Data | None = None
    test: Data | None = None
    weights: WeightFn | None = None
    units: WeightFn | float | None = None
    config: AnyConfig | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise SettingError(
                f"a Problem with {kind_of(self.model)} as model: "
                "its model must be a torch.nn.Module"
            )
        if not callable(self.loss):
            raise SettingError(
                f"a Problem with {kind_of(self.loss)} as loss: its loss must be a function of "
                "outputs and targets that gives one loss for each example, as "
                'torch.nn.CrossEntropyLoss(reduction="none")'
            )
        if self.weights is not None and not callable(self.weights):
            raise SettingError(
                f"a Problem with {kind_of(self.weights)} as weights: its weights must be a "
                "function of the targets that gives one number for each example, such as its "
                "number of valid tokens: lambda labels: (labels != -100).sum(1)"
            )
        units = self.units
        is_count = isinstance(units, int | float) and is_real(units) and 0 < units <= LARGEST
        if not (units is None or callable(units) or is_count):
            raise SettingError(
                f"a Problem with units {units!r}: give the number of tokens that each example "
                "has, above 0, or a function of the targets that gives one number for each: lambda "
                "labels: (labels != -100).sum(1)"
            )
        if callable(units) and self.weights is None:
            object.__setattr__(self, "weights", units)

    def __repr__(self) -> str:
        loss = getattr(self.loss, "__name__", type(self.loss).__name__)
        splits = {name: getattr(self, name) for name in SPLITS}
        return one_line(
            self,
            f"{type(self.model).__name__} of {_size_of(self.model)}",
            f"loss {loss}",
            *(f"{name} {_told(data)}" for name, data in splits.items() if data is not None),
        )


def weights_of(weights: WeightFn, targets: Tree) -> Tensor:
    """What each of B examples counts for in a batch, (B,), once it can be that.

    Args:
        weights: of a Problem.
        targets: of the examples.

    Raises:
        SettingError: the function fails, or gives other than a number for each example; for their
            values see `check_weights`.
    """
    num_examples = first_size(targets)
    try:
        values = weights(targets)
    except Exception as error:  # whatever the user's own function raises
        raise SettingError(
            f"the weights of the Problem fail on targets of shape {shapes(targets)}: "
            f"{own_words(error)}"
        ) from error
    if not isinstance(values, Tensor) or values.shape != (num_examples,) or values.is_complex():
        form = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else kind_of(values)
        raise SettingError(
            f"the weights of the Problem give {form} for {num_examples} examples: return one "
            f"number per example, shape ({num_examples},), as (labels != -100).sum(1) does"
        )
    return values.detach()


def units_per_example(units: WeightFn | float | None, source: Source) -> float | None:
    """The mean number of units, such as tokens, of some examples; None where it is not told.

    Args:
        units: of a Problem.
        source: the examples, read for it where each has its own number.

    Raises:
        SettingError: as `weights_of` and `check_weights`.
    """
    if units is None or not callable(units):
        return units
    total = 0.0
    for start in range(0, source.num_examples, COUNTED):
        values = weights_of(units, source.part(slice(start, start + COUNTED)).targets)
        check_weights(values)
        total += float(values.sum(dtype=torch.float64))
    return total / source.num_examples


def check_weights(values: Tensor) -> None:
    """SettingError for weights that no mean can be taken with; reads them, so not under vmap.

    Args:
        values: of examples, see `weights_of`.
    """
    if not (values.isfinite().all() and (values >= 0).all()):
        raise SettingError(
            "the weights of the Problem are below zero or not finite for some examples: give each "
            "a number of 0 or more"
        )


def check_not_lazy(model: nn.Module) -> None:
    """SettingError where a parameter gets its shape in the first pass only.

    Args:
        model: to be trained or measured.
    """
    if any(is_lazy(parameter) for parameter in model.parameters()):
        raise SettingError(f"{type(model).__name__} has lazy parameters: run it on one batch first")


def _size_of(model: nn.Module) -> str:
    """How many parameters a model has, in words."""
    if any(is_lazy(parameter) for parameter in model.parameters()):
        return "lazy parameters"
    return counted(sum(parameter.numel() for parameter in model.parameters()), "parameter")


def _told(data: Data) -> str:
    """How many examples a split has and, of a data set, its type; nothing is read."""
    if isinstance(data, Examples | Stream):
        return f"{data.num_examples:,}"
    dataset: object = data.dataset if isinstance(data, DataLoader) else data
    size = f"{len(dataset):,} of " if isinstance(dataset, Sized) else ""
    return f"{size}{type(dataset).__name__}"


def source_of(data: Data, *, seed: int = 0, draws: int = 1) -> Source:
    """The examples of a split, of which nothing is read yet; Examples come back as they are.

    Args:
        data: as a Problem's splits.
        seed: of what items draw at random.
        draws: how many of each item there are; more than one of items that change.

    Raises:
        SettingError: none of what a split may be, Examples that hold other things than tensors of
            one first dimension, or no example at all.
    """
    if isinstance(data, Examples):
        examples = Examples(with_dicts(data.inputs), with_dicts(data.targets))
        check_examples(examples)
        return _some(examples)
    if isinstance(data, Stream):
        return data.with_draws(draws) if draws > 1 else data
    dataset, collate_fn, num_workers = (
        parts_of(data) if isinstance(data, DataLoader) else Loader(data, None, 0)
    )
    if type(dataset) is TensorDataset and collate_fn is None and len(dataset.tensors) > 1:
        *inputs, targets = dataset.tensors
        return _some(Examples(inputs[0] if len(inputs) == 1 else tuple(inputs), targets))
    _check_map_style(dataset)
    stream = _some(Stream(Reader(dataset, collate_fn, seed=seed), num_workers=num_workers))
    return stream.with_draws(draws) if draws > 1 else stream


def held(source: Source) -> Source:
    """The examples in memory where they take no more than 1 GiB, for what goes over them often.

    Args:
        source: as `source_of` gives it.

    Raises:
        DataError: data that change from read to read and cannot be held.
    """
    return source.held() if isinstance(source, Stream) else source


def resident(source: Source, device: torch.device | str) -> Source:
    """The examples on a device, for training.

    A Dataset's are left where they are if they take more than 1 GiB, differ in shape, or change
    from read to read, so that every epoch has draws of its own.

    Args:
        source: as `source_of` gives it.
        device: where to.
    """
    in_memory = source
    if isinstance(source, Stream) and not source.check().changes:
        in_memory = source.held()  # which may find that some items change after all
    return in_memory.to(device) if isinstance(in_memory, Examples) else source


def as_examples(data: Data) -> Examples:
    """All of `data` in memory; Examples come back as they are.

    Raises:
        DataError: a Dataset whose items cannot be read or do not make a batch.
        SettingError: as `source_of`.
    """
    source = source_of(data)
    return source.whole() if isinstance(source, Stream) else source


def num_examples_of(data: Data) -> int:
    """How many examples there are.

    Raises:
        SettingError: as `source_of`.
    """
    return source_of(data).num_examples


def _some(source: SomeSource) -> SomeSource:
    """The examples, of which there is one at least; else SettingError."""
    if source.num_examples == 0:
        raise SettingError("a split of 0 examples: give one at least, or None where there is none")
    return source


def _check_map_style(data: object) -> None:
    """SettingError unless items can be read by their number, and counted."""
    what = f"data of type {type(data).__name__}"
    is_list = isinstance(data, list) and any(isinstance(part, Tensor) for part in data)
    if is_list or isinstance(data, tuple | dict):
        raise SettingError(f"{what}: give noisescale.Examples(inputs, targets)")
    is_map_style = hasattr(data, "__len__") and hasattr(data, "__getitem__")
    if isinstance(data, IterableDataset | str | Tensor) or not is_map_style:
        raise SettingError(
            f"{what}: give noisescale.Examples, a map-style torch Dataset, or a DataLoader of one"
        )
