"""stdout and stderr as they may be found: closed, full, a broken pipe, of another encoding."""

from __future__ import annotations

import codecs
import io
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

READABLE = "noisescale.readable"  # the name of the error handler
# What stands for the characters that the tables and notes use where the encoding has none of them
SUBSTITUTES = {
    **{"Σ": "S", "Δ": "D", "λ": "lambda", "η": "eta", "ε": "eps", "φ": "phi", "σ": "sigma"},
    **{"γ": "gamma", "β": "beta", "ρ": "rho", "χ": "chi", "∇": "grad", "π": "pi", "μ": "mu"},
    **{"±": "+-", "≈": "~", "≤": "<=", "≥": ">=", "≠": "!=", "∝": "~", "∞": "inf", "√": "sqrt"},
    **{"×": "x", "·": "*", "−": "-", "–": "-", "—": "-", "…": "...", "→": "->", "‖": "|"},
    **{"ᵀ": "^T", "²": "^2", "³": "^3", "⁻": "^-", "½": "1/2", "′": "'", "’": "'", "‘": "'"},
    **{"“": '"', "”": '"', "ḡ": "g", "•": "*", "█": "#", "━": "-", "─": "-", "│": "|"},
}


def readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is written in place of characters that an encoding does not have, for `codecs`.

    Bytes of a file name that are not UTF-8 are written as they are.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    if all("\udc80" <= character <= "\udcff" for character in characters):
        return bytes(ord(character) - 0xDC00 for character in characters), error.end
    return "".join(map(_substitute, characters)), error.end


def _substitute(character: str) -> str:
    """ASCII for a reader: of a table above, a Greek letter's name, one without accent, or "?"."""
    if character in SUBSTITUTES:
        return SUBSTITUTES[character]
    if (name := unicodedata.name(character, "")).startswith("GREEK SMALL LETTER "):
        return name.split()[3].lower()
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return plain or "?"


@contextmanager
def streams() -> Iterator[None]:
    """Lets a command write to stdout and stderr whatever they are.

    A closed one is the null device. A character that the encoding lacks has a substitute. What
    stderr, which takes notes alone, does not take, is lost; what stdout does not take raises
    OSError when it is flushed, and is not tried again when the process ends.
    """
    codecs.register_error(READABLE, readable)
    sys.stdout, sys.stderr = _opened(sys.stdout, 1), _opened(sys.stderr, 2)
    before = [(stream, stream.errors) for stream in (sys.stdout, sys.stderr)]
    for stream, _ in before:
        _set_errors(stream, READABLE)
    notes = sys.stderr
    sys.stderr = cast(TextIO, _Notes(notes))
    try:
        yield
    finally:
        sys.stderr = notes
        for stream, errors in before:
            _give_up_unless_flushed(stream)
            _set_errors(stream, errors)


def _set_errors(stream: TextIO, errors: str | None) -> None:
    """Says what happens to characters that the stream's encoding lacks."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors=errors)


class _Notes:
    """A stream whose failures to write, as on a full device, are nobody's concern."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _opened(stream: TextIO | None, number: int) -> TextIO:
    """The stream, or the null device under its number, which no other file then takes."""
    if stream is not None:
        return stream
    null = os.open(os.devnull, os.O_WRONLY)
    if null != number:
        os.dup2(null, number)
        os.close(null)
    return os.fdopen(number, "w", encoding="utf-8", closefd=False)


def _give_up_unless_flushed(stream: TextIO) -> None:
    """Sends what cannot be written to the null device, or Python itself would try again."""
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)
