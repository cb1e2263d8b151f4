"""The files of MNIST and Fashion-MNIST in torchvision's layout: fetched whole, checked, read."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import queue
import socket
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from noisescale.errors import DataError

if TYPE_CHECKING:
    from torchvision import datasets

Images = tuple[Tensor, Tensor]

# Seconds in which some server must have answered: "auto" promises to have fallen back in twenty
REACHABLE_WITHIN = 15.0
# Seconds without a byte after which a download is given up: longer than any pause of a slow line
STALLED_AFTER = 30.0

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


@dataclass(frozen=True)
class Source:
    """A data set of torchvision's, and the SHA-256 sums of its four files in the order of FILES.

    name: of torchvision's class, and of the folder it keeps its files in.
    raw: sums of the files as torchvision reads them.
    archives: sums of the .gz files as published, where the raw ones' are not known: the raw files
        are then compared with what the archives beside them hold.
    """

    name: str
    raw: tuple[str, ...] = ()
    archives: tuple[str, ...] = ()

    @property
    def dataset(self) -> type[datasets.MNIST]:
        """The class, imported on first use: torchvision takes longer than all else of a start."""
        from torchvision import datasets

        dataset: type[datasets.MNIST] = getattr(datasets, self.name)
        return dataset

    def folder(self, root: Path) -> Path:
        """Where the files lie in torchvision's layout."""
        return root / self.name / "raw"


SOURCES = {
    "mnist": Source(
        "MNIST",
        raw=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion-mnist": Source(
        "FashionMNIST",
        archives=(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
}


def fetch(source: Source, root: Path) -> None:
    """Downloads the files into `root` unless all four are there.

    They arrive in a temporary folder and are moved when complete, so a killed download leaves
    nothing that could be taken for the data. Where no server answers, that is known after 15
    seconds.

    Raises:
        DataError: the files are not there and cannot be downloaded.
    """
    folder = source.folder(root)
    if all((folder / name).is_file() for name in FILES):
        return
    dataset = source.dataset
    labels = dataset.resources[1][0]  # any of the four would do
    if not reachable([f"{mirror}{labels}" for mirror in dataset.mirrors]):
        raise DataError(
            f"{folder} lacks files of {source.name} and none of its servers answered: "
            "name a folder that has them with --data-dir or NOISESCALE_DATA, "
            "or use --dataset digits"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        with (
            tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary,
            socket_timeout(),
        ):
            dataset(temporary, download=True)
            folder.mkdir(parents=True, exist_ok=True)
            for file in source.folder(Path(temporary)).iterdir():
                file.replace(folder / file.name)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{source.name} could not be downloaded into {root}: {error}") from error


def verify(source: Source, root: Path) -> None:
    """DataError naming the first of the four files whose content is not the published one.

    torchvision checks only what it downloads itself; a damaged or exchanged file would go
    unnoticed.
    """
    folder = source.folder(root)
    for position, name in enumerate(FILES):
        if source.raw:
            expected = source.raw[position]
        elif (archive := folder / f"{name}.gz").is_file():
            check_digest(archive, source.archives[position])
            with gzip.open(archive) as stream:
                expected = hashlib.file_digest(stream, "sha256").hexdigest()
        else:
            message = f"{folder / name} is not verified: its archive {name}.gz is not beside it"
            warnings.warn(message, stacklevel=2)
            continue
        check_digest(folder / name, expected)


def read(source: Source, root: Path) -> tuple[Images, Images]:
    """Training and test images (N, 28, 28), uint8, with their classes (N,), int64."""
    try:
        train, test = (source.dataset(root, train=is_train) for is_train in (True, False))
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        raise DataError(f"{root}: the files of {source.name} cannot be read ({error})") from error
    return (train.data, train.targets), (test.data, test.targets)


def check_digest(path: Path, expected: str) -> None:
    """DataError unless the file's SHA-256 sum is the expected one."""
    try:
        with path.open("rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if actual != expected:
        raise DataError(
            f"{path} is damaged: its SHA-256 is {actual[:12]}…, the published file's is "
            f"{expected[:12]}…; delete it and run again to download it"
        )


def reachable(urls: list[str]) -> bool:
    """Whether any of `urls` answers in time. Threads, since looking up a name obeys no time-out."""
    answers: queue.Queue[bool] = queue.Queue()

    def ask(url: str) -> None:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, method="HEAD"), timeout=REACHABLE_WITHIN
            ):
                answers.put(True)
        except (OSError, ValueError, http.client.HTTPException):
            answers.put(False)

    for url in urls:
        threading.Thread(target=ask, args=(url,), daemon=True).start()
    deadline = time.monotonic() + REACHABLE_WITHIN
    with contextlib.suppress(queue.Empty):
        return any(answers.get(timeout=max(0.0, deadline - time.monotonic())) for _ in urls)
    return False


@contextlib.contextmanager
def socket_timeout() -> Iterator[None]:
    """A time-out for torchvision, which downloads without a time-out of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALLED_AFTER)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
