"""The data sets, whole on one device: MNIST, Fashion-MNIST, scikit-learn's digits, and texts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from noisescale.errors import DataError, SettingError
from noisescale.problems.config import (
    CONTEXT,
    MOST_CLASSES,
    TEXTS,
    DatasetName,
    PixelScale,
    ProblemConfig,
)
from noisescale.problems.data import mnist_files
from noisescale.problems.data.markov import entropy_rate
from noisescale.problems.data.texts import (
    SHAKESPEARE,
    divide,
    fetch_text,
    load_text,
    num_sequences,
)
from noisescale.problems.problem import Examples
from noisescale.problems.sampling import independent_seed

# Training examples of each class; of the digits' 1,797 images 500 are held out
NUM_OF_CLASS = {
    "mnist": (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
    "fashion-mnist": (6000,) * 10,
    "digits": (130, 137, 133, 130, 125, 118, 132, 132, 134, 126),
}
SPLIT_SEED = 42  # the three-case study's


class _Pixels(NamedTuple):
    """Largest pixel value x, and the customary mean and standard deviation of x/largest."""

    largest: float
    mean: float
    std: float


_PIXELS = {
    "mnist": _Pixels(255, 0.1307, 0.3081),
    "fashion-mnist": _Pixels(255, 0.2860, 0.3530),
    "digits": _Pixels(16, 0.3053, 0.3760),
}


class Splits(NamedTuple):
    """Examples on one device, see `load_splits`."""

    train: Examples
    validation: Examples
    test: Examples
    num_classes: int


def default_data_dir() -> Path:
    """$NOISESCALE_DATA, else the user's cache directory."""
    if named := os.environ.get("NOISESCALE_DATA"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "noisescale"


def resolve_dataset(
    name: DatasetName | Literal["auto"], data_dir: Path | str | None = None, *, text: bool = False
) -> tuple[DatasetName, str | None]:
    """The data set to use and, where "auto" had to fall back on another, why.

    "auto" means MNIST and, only where it is neither on disk nor downloadable, digits; without a
    network that is known within 20 seconds. Damaged MNIST files are an error, never a reason to
    fall back. Likewise of texts: tiny Shakespeare, or a Markov source.

    Args:
        name: as the user gave it.
        data_dir: as for `load_splits`.
        text: whether "auto" means a text.
    """
    if name != "auto":
        return name, None
    root = Path(data_dir or default_data_dir())
    try:
        if text:
            fetch_text(SHAKESPEARE, root)
        else:
            mnist_files.fetch(mnist_files.SOURCES["mnist"], root)
    except DataError as error:
        if text:
            return "markov", (
                "tiny Shakespeare cannot be had, a Markov source of "
                f"{entropy_rate():.3f} bits per character stands in for it ({error})"
            )
        return "digits", f"MNIST cannot be had, scikit-learn's digits stand in for it ({error})"
    return ("shakespeare" if text else "mnist"), None


def num_training_examples(config: ProblemConfig) -> int:
    """How many training examples a problem has, known without loading them (but for a file's).

    Args:
        config: of the problem.

    Raises:
        SettingError: a subset larger than the data set.
    """
    available = num_sequences(config) if config.is_text else sum(_kept_of_classes(config))
    _check_num_train(config, available)
    return config.num_train or available


def _check_num_train(config: ProblemConfig, available: int) -> None:
    """SettingError where a problem names more training examples than there are."""
    if config.num_train is not None and config.num_train > available:
        kind = f"sequences of {config.context or CONTEXT}" if config.is_text else "images"
        if config.classes is not None:
            kind += f" of the first {config.classes} classes"
        if config.imbalance != 1:
            kind += f" at an imbalance of {config.imbalance:g}"
        raise SettingError(
            f"num train {config.num_train}: {config.dataset} has {available} training {kind}; "
            "give at most that"
        )


def load_splits(
    name: DatasetName,
    *,
    pixel_scale: PixelScale = "unit",
    num_train: int | None = None,
    label_noise: float = 0.0,
    classes: int | None = None,
    imbalance: float = 1.0,
    context: int | None = None,
    text: str | None = None,
    data_dir: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> Splits:
    """The training, validation and test examples of a data set: standardised images, or sequences.

    MNIST and Fashion-MNIST have 60,000 training images 28×28; of the official test set 8,000 serve
    for validation and 2,000 for test, by `train_test_split(test_size=.2, random_state=42)`, the
    three-case study's split. They are downloaded when absent. The digits come with scikit-learn:
    1,297 training images 8×8, 250 for validation and 250 for test.

    A text is cut into sequences of characters that follow one another, and each sequence's targets
    are its characters one further; training has the first 90 % of the text, validation the next
    5 %, test the last 5 %. Tiny Shakespeare (1,115,394 characters, 65 of them different) is
    downloaded when absent; the Markov source, of 27 characters, is made here.

    Args:
        name: "mnist", "fashion-mnist", "digits", "shakespeare", "markov" or "text".
        pixel_scale: "unit" gives (x/largest − mean)/std, "raw" gives (x − mean)/std, with pixels x
            in 0…largest.
        num_train: the first so many of one fixed shuffle of the training examples, the same in
            every call, so that a smaller subset lies in a larger one; None: all, in their order.
        label_noise: share of the training labels that another class replaces, of images, see
            `ProblemConfig`.
        classes: k: only images of the first k classes, in all three splits; None: all.
        imbalance: ρ of unequal classes in training, of images, see `ProblemConfig`.
        context: T, characters of a sequence; None: 64.
        text: the file of "text": UTF-8, or any bytes.
        data_dir: where the files are, or are to be put; None: $NOISESCALE_DATA, else the user's
            cache.
        device: of the examples.

    Returns:
        The three splits, and the number of classes: of images, float32 inputs (N, 1, H, W) and
        int64 classes (N,); of texts, int64 inputs and targets (N, T).

    Raises:
        DataError: files are damaged, by their checksums, or cannot be downloaded.
        SettingError: num_train is larger than the data set, or a text is too short.

    Examples:
        >>> from noisescale import load_splits
        >>> load_splits("digits").test
        Examples(inputs (250, 1, 8, 8), targets (250,))
        >>> load_splits("markov", context=32).train
        Examples(inputs (11249, 32), targets (11249, 32))
    """
    config = ProblemConfig(
        dataset=name,
        pixel_scale=pixel_scale,
        num_train=num_train,
        label_noise=label_noise,
        classes=classes,
        imbalance=imbalance,
        model="gpt" if name in TEXTS else "mlp",  # no part of the data
        context=context,
        text=text,
    )
    return splits_of(config, data_dir=data_dir, device=device)


def splits_of(
    config: ProblemConfig, *, data_dir: Path | str | None = None, device: torch.device | str = "cpu"
) -> Splits:
    """The examples that a configuration names, see `load_splits`.

    Args:
        config: of the problem.
        data_dir: as there.
        device: of the examples.

    Raises:
        DataError: as there.
        SettingError: as there.
    """
    root = Path(data_dir or default_data_dir())
    if not config.is_text:
        num_training_examples(config)
        return _images(config, root, device)
    text = load_text(config, root)
    train, validation, test = divide(text, config.context or CONTEXT)
    _check_num_train(config, train.num_examples)
    if config.num_train is not None:
        train = train.part(_subset(train.num_examples, config.num_train))
    return Splits(
        train=train.to(device),
        validation=validation.to(device),
        test=test.to(device),
        num_classes=text.num_symbols,
    )


def _images(config: ProblemConfig, root: Path, device: torch.device | str) -> Splits:
    """The splits of a data set of images."""
    name = config.dataset
    if name == "digits":
        from sklearn.datasets import load_digits  # where it is needed: it takes a third of a second

        images, classes = map(torch.from_numpy, load_digits(return_X_y=True))
        images = images.unflatten(1, (8, 8))
        rest, held_out = _split(len(images), test_size=500)
        images, held_out_images = images[rest], images[held_out]
        classes, held_out_classes = classes[rest], classes[held_out]
    else:
        source = mnist_files.SOURCES[name]
        mnist_files.fetch(source, root)
        mnist_files.verify(source, root)
        (images, classes), (held_out_images, held_out_classes) = mnist_files.read(source, root)

    num_classes = config.classes or MOST_CLASSES
    if config.classes is not None:
        chosen = classes < num_classes
        images, classes = images[chosen], classes[chosen]
    if config.imbalance != 1:
        kept = _unequal(classes, _kept_of_classes(config))
        images, classes = images[kept], classes[kept]
    if config.num_train is not None:
        subset = _subset(len(images), config.num_train)
        images, classes = images[subset], classes[subset]
    # of no seed that a user gives: a permutation under that is also what measurements draw their
    # examples from, which would then be the wrong ones
    generator = torch.Generator().manual_seed(independent_seed("label noise"))
    classes = with_wrong_labels(classes, config.label_noise, num_classes, generator)

    def to_device(images: Tensor, classes: Tensor) -> Examples:
        pixels = _PIXELS[name]
        inputs = images.to(device=device, dtype=torch.float32)
        inputs = inputs.unsqueeze(1)  # (N, H, W) -> (N, 1, H, W)
        if config.pixel_scale == "unit":
            inputs.div_(pixels.largest)
        inputs.sub_(pixels.mean).div_(pixels.std)
        return Examples(inputs, classes.to(device=device, dtype=torch.int64))

    validation, test = _split(len(held_out_images), test_size=0.5 if name == "digits" else 0.2)
    validation, test = (part[held_out_classes[part] < num_classes] for part in (validation, test))
    return Splits(
        train=to_device(images, classes),
        validation=to_device(held_out_images[validation], held_out_classes[validation]),
        test=to_device(held_out_images[test], held_out_classes[test]),
        num_classes=num_classes,
    )


def _kept_of_classes(config: ProblemConfig) -> list[int]:
    """How many training images each class has (k,), one at least."""
    sizes = NUM_OF_CLASS[config.dataset][: config.classes]
    last = len(sizes) - 1
    return [
        max(round(size * config.imbalance ** (-place / last)), 1)
        for place, size in enumerate(sizes)
    ]


def _unequal(classes: Tensor, sizes: Sequence[int]) -> Tensor:
    """Indices, rising, of so many images of each class: the first of one fixed shuffle."""
    generator = torch.Generator().manual_seed(independent_seed("imbalance"))
    order = torch.randperm(len(classes), generator=generator)
    shuffled = classes[order]
    kept = [order[shuffled == number][:size] for number, size in enumerate(sizes)]
    return torch.cat(kept).sort().values


def with_wrong_labels(
    classes: Tensor, share: float, num_classes: int, generator: torch.Generator
) -> Tensor:
    """The classes (N,), round(share·N) of them replaced by another one; a new tensor.

    Which come first and what replaces each does not depend on the share.
    """
    order = torch.randperm(len(classes), generator=generator)
    shifts = torch.randint(1, num_classes, (len(classes),), generator=generator)
    wrong = order[: round(share * len(classes))]
    replaced = classes.to(torch.int64, copy=True)
    replaced[wrong] = (replaced[wrong] + shifts[wrong]) % num_classes
    return replaced


def _subset(num_examples: int, size: int) -> Tensor:
    """The same random examples in every call."""
    order = torch.randperm(num_examples, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return order[:size]


def _split(num_examples: int, *, test_size: float) -> tuple[Tensor, Tensor]:
    """Indices of the two parts of the study's split."""
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(
        np.arange(num_examples), test_size=test_size, random_state=SPLIT_SEED
    )
    return torch.from_numpy(rest), torch.from_numpy(test)
