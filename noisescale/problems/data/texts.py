"""Texts, character by character: tiny Shakespeare, a file, or one that is made here."""

from __future__ import annotations

import hashlib
import math
import tempfile
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from noisescale.errors import DataError, SettingError, check_file
from noisescale.problems.config import CONTEXT, ProblemConfig
from noisescale.problems.data import markov
from noisescale.problems.data.mnist_files import STALLED_AFTER, check_digest, reachable
from noisescale.problems.problem import Examples

SHARES = (0.9, 0.95)  # where training characters end, and validation characters


@dataclass(frozen=True)
class TextSource:
    """A text that can be downloaded.

    file: its place in the data folder. url: where it is published. sha256: of its content.
    num_characters: in it.
    """

    file: str
    url: str
    sha256: str
    num_characters: int


SHAKESPEARE = TextSource(
    file="tinyshakespeare/input.txt",
    url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    num_characters=1_115_394,
)


class Text(NamedTuple):
    """A text: each character's place (n,) in the vocabulary, which has `num_symbols`."""

    codes: Tensor
    num_symbols: int


def fetch_text(source: TextSource, root: Path) -> Path:
    """The file of a text, downloaded and checked where it is not there.

    It arrives under a temporary name and is moved when complete. Where no server answers, that is
    known after 15 seconds.

    Args:
        source: which text.
        root: the data folder.

    Raises:
        DataError: it is not there and cannot be downloaded, or what comes is another content.
    """
    path = root / source.file
    if path.is_file():
        return path
    if not reachable([source.url]):
        raise DataError(
            f"{path} is not there and its server does not answer: name a folder that has it with "
            "--data-dir or NOISESCALE_DATA, give a file of your own with --text, or use "
            "--dataset markov"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".download-") as temporary:
            arrived = Path(temporary) / path.name
            with urllib.request.urlopen(source.url, timeout=STALLED_AFTER) as answer:
                arrived.write_bytes(answer.read())
            check_digest(arrived, source.sha256)
            arrived.replace(path)
    except (OSError, HTTPException) as error:  # the latter: one that breaks off
        raise DataError(f"{path} could not be downloaded from {source.url}: {error}") from error
    return path


def load_text(config: ProblemConfig, root: Path) -> Text:
    """The text that a configuration names.

    Args:
        config: of a text.
        root: the data folder.

    Raises:
        DataError: its file is absent, damaged, or another one than the configuration's.
    """
    if config.dataset == "markov":
        return Text(torch.from_numpy(markov.markov_codes()).long(), markov.NUM_SYMBOLS)
    if config.dataset == "shakespeare":
        path = fetch_text(SHAKESPEARE, root)
        check_digest(path, SHAKESPEARE.sha256)
        return encode(_content(path))
    path = Path(config.text or "")
    check_file(path, DataError)
    content = _content(path)
    if hashlib.sha256(content).hexdigest() != config.text_sha256:
        raise DataError(
            f"{path} has changed since the run began: put it back as it was, or train anew on it"
        )
    return encode(content)


def num_sequences(config: ProblemConfig) -> int:
    """How many training sequences a text has; of a file of one's own it is read for that."""
    lengths = {"shakespeare": SHAKESPEARE.num_characters, "markov": markov.NUM_CHARACTERS}
    length = lengths.get(config.dataset)
    if length is None:
        length = len(load_text(config, Path()).codes)
    return (math.floor(SHARES[0] * length) - 1) // (config.context or CONTEXT)


def divide(text: Text, context: int) -> tuple[Examples, Examples, Examples]:
    """Training, validation and test sequences: the first 90 %, the next 5 % and the last 5 %.

    Contiguous parts, so that no held-out sequence has its like beside it in training. Each part is
    cut into sequences that follow one another: inputs x[i·T … i·T + T − 1], targets one further.

    Args:
        text: of n characters.
        context: T.

    Raises:
        SettingError: a part that is shorter than a sequence and its last target.
    """
    length = len(text.codes)
    train_end, validation_end = (math.floor(share * length) for share in SHARES)
    parts = (
        text.codes[:train_end],
        text.codes[train_end:validation_end],
        text.codes[validation_end:],
    )
    if min(map(len, parts)) <= context:
        raise SettingError(
            f"context {context} with a text of {length:,} characters: validation and test are 5 % "
            f"of it each; give a context of {max(1, length // 20 - 1)} at most, or a longer text"
        )
    train, validation, test = (_sequences(part, context) for part in parts)
    return train, validation, test


def _sequences(codes: Tensor, context: int) -> Examples:
    """The text in sequences (N, T), and the character after each of theirs (N, T)."""
    count = (len(codes) - 1) // context
    used = count * context
    return Examples(codes[:used].view(count, context), codes[1 : used + 1].view(count, context))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def encode(content: bytes) -> Text:
    """The characters of a text, each by its place in the order of those that occur.

    Args:
        content: in UTF-8; of anything else, each byte is a character.
    """
    try:
        characters = content.decode()
    except UnicodeDecodeError:
        characters = content.decode("latin-1")
    points = np.frombuffer(characters.encode("utf-32-le"), dtype=np.uint32)
    vocabulary, codes = np.unique(points, return_inverse=True)
    return Text(torch.from_numpy(codes.astype(np.int64)), len(vocabulary))
