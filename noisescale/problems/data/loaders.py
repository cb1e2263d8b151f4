"""What a DataLoader says of the examples, apart from how it batches them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from noisescale.errors import SettingError
from noisescale.problems.data.items import Collate

INSTEAD = "give DataLoader(dataset, collate_fn=…) of the Dataset itself"


class Loader(NamedTuple):
    """The data set behind a DataLoader, how its items become a batch, and the processes that read.

    collate_fn: None for torch's default_collate.
    """

    dataset: Any
    collate_fn: Collate | None
    num_workers: int


def parts_of(loader: DataLoader[Any]) -> Loader:
    """What a DataLoader is made of; its batch size and its order are left out.

    Raises:
        SettingError: its sampler draws some examples more often than others, or in a way that is
            not known here, or it does not read single items.
    """
    if isinstance(loader.dataset, IterableDataset):
        raise SettingError(
            f"a DataLoader of {type(loader.dataset).__name__}, an IterableDataset: give a "
            "map-style Dataset, with __len__ and __getitem__"
        )
    if type(loader.batch_sampler) is not BatchSampler:  # None where the items are batches
        what = (
            f"the batches of {type(loader.batch_sampler).__name__}"
            if loader.batch_sampler is not None
            else "batch_size None"
        )
        raise SettingError(
            f"a DataLoader with {what}: which examples it draws, and how often, is not known; "
            f"{INSTEAD}"
        )
    dataset: Any = loader.dataset
    sampler = loader.sampler
    if isinstance(sampler, SubsetRandomSampler):
        dataset = Subset(dataset, list(sampler.indices))
    elif not isinstance(sampler, SequentialSampler | RandomSampler | DistributedSampler):
        raise SettingError(
            f"a DataLoader whose {type(sampler).__name__} may draw some examples more often than "
            f"others: to measure all of them alike, {INSTEAD}"
        )
    collate: Collate | None = loader.collate_fn
    return Loader(dataset, None if collate is default_collate else collate, loader.num_workers)
