"""Fixtures: threads and seeds fixed, and MNIST where it is to be had."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from noisescale.problems.data.mnist_files import FILES
from noisescale.problems.data.splits import default_data_dir


@pytest.fixture(autouse=True)
def _reproducible() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """Where MNIST lies; without it, as on a machine without a network, its tests cannot run."""
    folder = default_data_dir().resolve()
    if not all((folder / "MNIST" / "raw" / name).is_file() for name in FILES):
        pytest.skip("MNIST is not in $NOISESCALE_DATA or the user cache")
    return folder
