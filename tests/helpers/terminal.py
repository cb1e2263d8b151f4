"""A command on a terminal of its own: what it writes there, with its colours."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from noisescale.cli import main

HEIGHT = 50


def on_terminal(
    *arguments: object, width: int = 80, stdout: bool = True, **variables: str
) -> tuple[int, str]:
    """Exit code, and what stdout and stderr, or stderr alone, show on a terminal of this width."""
    with pytest.MonkeyPatch.context() as patch, _terminal(width) as (stream, shown):
        for name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
            patch.delenv(name, raising=False)
        for name, value in {"TERM": "xterm-256color", **variables}.items():
            patch.setenv(name, value)
        patch.setattr("sys.stdin", stream)  # which rich asks for the size
        patch.setattr("sys.stderr", stream)
        if stdout:
            patch.setattr("sys.stdout", stream)
        patch.setattr("sys.__stdin__", stream)
        patch.setattr("sys.__stdout__", stream)
        patch.setattr("sys.__stderr__", stream)
        try:
            main.main([str(argument) for argument in arguments], prog_name="noisescale")
        except SystemExit as end:
            code = end.code
    return int(code or 0), b"".join(shown).decode()


@contextmanager
def _terminal(width: int) -> Iterator[tuple[TextIO, list[bytes]]]:
    """The stream of a terminal, and what is read at its other end until the block ends."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, width, 0, 0))
    shown: list[bytes] = []

    def read() -> None:
        while True:
            try:
                data = os.read(reader, 65536)
            except OSError:  # the last writer has closed it
                return
            if not data:
                return
            shown.append(data)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        with os.fdopen(writer, "w", encoding="utf-8") as stream:
            yield stream, shown
    finally:
        thread.join()
        os.close(reader)
