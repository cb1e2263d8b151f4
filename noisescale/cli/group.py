"""How every command of the project meets failure: one message, an exit code, no traceback."""

from __future__ import annotations

import errno
import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, TextIO

import click

from noisescale.cli.streams import streams
from noisescale.errors import (
    Interrupted,
    NoisescaleError,
    SettingError,
    is_out_of_memory,
    own_place,
    own_words,
)

DEBUG = "NOISESCALE_DEBUG"  # a variable of the environment
HOW_TO_SEE = f"--debug (or {DEBUG}=1)"
_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class Commands(click.Group):
    """Commands that exit with 2 for bad usage, 1 for failed work, 128 + signal when interrupted.

    Whatever a command raises becomes one message; with --debug, the whole traceback stands before
    it. What the user's own code raises is said with its type, its text and its line.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.append(_debug_option())

    def add_command(self, command: click.Command, name: str | None = None) -> None:
        """Adds a command, which takes --debug too."""
        command.params.append(_debug_option(hidden=True))
        super().add_command(command, name)

    def main(self, *args: Any, **options: Any) -> Any:
        with streams(), warnings.catch_warnings():
            # a name in a title, in a script that no font at hand has: boxes stand for it
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
            try:
                try:
                    return super().main(*args, **options)
                finally:
                    sys.stdout.flush()
            except OSError as error:
                if error.errno != errno.EPIPE:  # none is read any more, as after `| head`
                    click.echo(f"Error: stdout: {error.strerror}", err=True)
                sys.exit(1)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for text in (*args, _current_folder(ctx)):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise click.UsageError(
                    f"{os.fsencode(text)!r} is not UTF-8, in which tables, JSON and pictures are "
                    "written: rename it, or give another",
                    ctx,
                ) from error
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except SettingError as error:
            _show_traceback(ctx, error)
            raise click.UsageError(str(error), error.command or ctx) from error
        except Interrupted as interruption:
            click.echo(str(interruption), err=True)
            ctx.exit(interruption.exit_code)
        except KeyboardInterrupt:
            click.echo("Stopped at once: what is already written is whole.", err=True)
            ctx.exit(130)
        except Exception as error:
            _show_traceback(ctx, error)
            if (unwritten := _unwritten(sys.stdout)) is not None:
                raise unwritten from error
            raise click.ClickException(_message(error)) from error


def _message(error: Exception) -> str:
    """What to say of a failure other than of bad usage."""
    if isinstance(error, NoisescaleError):
        return str(error)
    if is_out_of_memory(error):
        return f"not enough memory, give a smaller model or batch ({own_words(error)})"
    if own_place(error) is not None:
        return f"your own code fails: {own_words(error)}; {HOW_TO_SEE} shows how it came to that"
    if isinstance(error, OSError):
        said = str(error.strerror or error)
        message = f"{error.filename}: {said}" if error.filename else said
        if error.errno in _DISK_FULL:
            message += (
                "; what is already written is whole: make room and run the same command again"
            )
        return message
    return (
        f"{own_words(error)}: this is a fault of the program itself, and what is written is kept; "
        f"{HOW_TO_SEE} shows where it is: please report it with that"
    )


def _unwritten(stream: TextIO) -> OSError | None:
    """Why a stream does not take what was written to it; None where it does."""
    try:
        stream.flush()
    except OSError as error:
        return error
    return None


def _current_folder(ctx: click.Context) -> str:
    try:
        return str(Path.cwd())
    except OSError as error:
        raise click.UsageError(
            f"the current folder cannot be found ({error.strerror}): change to another", ctx
        ) from error


def _debug_option(*, hidden: bool = False) -> click.Option:
    """--debug, given before the command or, hidden there, among its own options."""
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        hidden=hidden,
        callback=_note_debug,
        help=f"Show the whole traceback of a failure; {DEBUG}=1 does so too.",
    )


def _note_debug(ctx: click.Context, option: click.Parameter, given: bool) -> None:
    if given:
        ctx.find_root().meta[DEBUG] = True


def _show_traceback(ctx: click.Context, error: BaseException) -> None:
    """The traceback on stderr, where it was asked for."""
    if ctx.find_root().meta.get(DEBUG) or os.environ.get(DEBUG, "0") not in ("", "0"):
        click.echo("".join(traceback.format_exception(error)), err=True)
