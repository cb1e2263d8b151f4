"""How every command of the project meets failure: one message, an exit code, no traceback."""

from __future__ import annotations

import errno
from typing import Any

import click

from noisescale.errors import Interrupted, NoisescaleError, SettingError

_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


class Commands(click.Group):
    """Commands that exit with 2 for bad usage, 1 for failed work, 128 + signal when interrupted."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SettingError as error:
            raise click.UsageError(str(error), ctx) from error
        except NoisescaleError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            message = (
                f"{error.filename}: {error.strerror}"
                if error.filename
                else str(error.strerror or error)
            )
            if error.errno in _DISK_FULL:
                message += (
                    "; what is already written is whole: make room and run the same command again"
                )
            raise click.ClickException(message) from error
        except (MemoryError, RuntimeError) as error:
            if "memory" not in str(error):
                raise
            raise click.ClickException(
                f"not enough memory, give a smaller model or batch ({error})"
            ) from error
        except Interrupted as interruption:
            click.echo(str(interruption), err=True)
            ctx.exit(interruption.exit_code)
        except KeyboardInterrupt:
            click.echo("Stopped: nothing was kept.", err=True)
            ctx.exit(130)
