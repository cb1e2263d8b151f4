"""The real data sets: MNIST, Fashion-MNIST and scikit-learn's digits, whole on one device."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from noisescale.errors import DataError, SettingError
from noisescale.problems.config import DatasetName, PixelScale
from noisescale.problems.data import mnist_files
from noisescale.problems.problem import Examples

# Training examples; of the digits' 1,797 images 500 are held out
NUM_TRAIN = {"mnist": 60_000, "fashion-mnist": 60_000, "digits": 1_297}
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
    """Examples on one device: float32 inputs (N, 1, H, W), int64 classes (N,)."""

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
    name: DatasetName | Literal["auto"], data_dir: Path | None = None
) -> tuple[DatasetName, str | None]:
    """The data set to use and, where "auto" had to fall back on digits, why.

    "auto" means MNIST and, only where it is neither on disk nor downloadable, digits; without a
    network that is known within 20 seconds. Damaged MNIST files are an error, never a reason to
    fall back.
    """
    if name != "auto":
        return name, None
    try:
        mnist_files.fetch(mnist_files.SOURCES["mnist"], data_dir or default_data_dir())
    except DataError as error:
        return "digits", f"MNIST cannot be had, scikit-learn's digits stand in for it ({error})"
    return "mnist", None


def num_training_examples(name: DatasetName, num_train: int | None = None) -> int:
    """How many training examples `load_splits` gives, known without loading them.

    Raises:
        SettingError: a subset larger than the data set.
    """
    available = NUM_TRAIN[name]
    if num_train is not None and num_train > available:
        raise SettingError(
            f"num train {num_train}: {name} has {available} training images; give at most that"
        )
    return num_train or available


def load_splits(
    name: DatasetName,
    *,
    pixel_scale: PixelScale = "unit",
    num_train: int | None = None,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
) -> Splits:
    """The training, validation and test examples of a data set, standardised.

    MNIST and Fashion-MNIST have 60,000 training images 28×28; of the official test set 8,000 serve
    for validation and 2,000 for test, by `train_test_split(test_size=.2, random_state=42)`, the
    three-case study's split. They are downloaded when absent. The digits come with scikit-learn:
    1,297 training images 8×8, 250 for validation and 250 for test.

    Args:
        name: "mnist", "fashion-mnist" or "digits".
        pixel_scale: "unit" gives (x/largest − mean)/std, "raw" gives (x − mean)/std, with pixels x
            in 0…largest.
        num_train: the first so many of one fixed shuffle of the training images, the same in every
            call, so that a smaller subset lies in a larger one; None: all, in the files' order.
        data_dir: where the files are, or are to be put; None: $NOISESCALE_DATA, else the user's
            cache.
        device: of the examples.

    Returns:
        Float32 inputs (N, 1, H, W) and int64 classes (N,) of the three splits, and the number of
        classes.

    Raises:
        DataError: files are damaged, by their checksums, or cannot be downloaded.
        SettingError: num_train is larger than the data set.

    Examples:
        >>> from noisescale import load_splits
        >>> load_splits("digits").test
        Examples(inputs (250, 1, 8, 8), targets (250,))
    """
    num_training_examples(name, num_train)
    if name == "digits":
        from sklearn.datasets import load_digits  # where it is needed: it takes a third of a second

        images, classes = map(torch.from_numpy, load_digits(return_X_y=True))
        images = images.unflatten(1, (8, 8))
        rest, held_out = _split(len(images), test_size=500)
        images, held_out_images = images[rest], images[held_out]
        classes, held_out_classes = classes[rest], classes[held_out]
    else:
        source, root = mnist_files.SOURCES[name], data_dir or default_data_dir()
        mnist_files.fetch(source, root)
        mnist_files.verify(source, root)
        (images, classes), (held_out_images, held_out_classes) = mnist_files.read(source, root)

    if num_train is not None:
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(SPLIT_SEED))
        subset = order[:num_train]
        images, classes = images[subset], classes[subset]

    def to_device(images: Tensor, classes: Tensor) -> Examples:
        pixels = _PIXELS[name]
        inputs = images.to(device=device, dtype=torch.float32)
        inputs = inputs.unsqueeze(1)  # (N, H, W) -> (N, 1, H, W)
        if pixel_scale == "unit":
            inputs.div_(pixels.largest)
        inputs.sub_(pixels.mean).div_(pixels.std)
        return Examples(inputs, classes.to(device=device, dtype=torch.int64))

    validation, test = _split(len(held_out_images), test_size=0.5 if name == "digits" else 0.2)
    return Splits(
        train=to_device(images, classes),
        validation=to_device(held_out_images[validation], held_out_classes[validation]),
        test=to_device(held_out_images[test], held_out_classes[test]),
        num_classes=10,
    )


def _split(num_examples: int, *, test_size: float) -> tuple[Tensor, Tensor]:
    """Indices of the two parts of the study's split."""
    from sklearn.model_selection import train_test_split

    rest, test = train_test_split(
        np.arange(num_examples), test_size=test_size, random_state=SPLIT_SEED
    )
    return torch.from_numpy(rest), torch.from_numpy(test)
