"""How every command of the project meets failure: one message, an exit code, no traceback."""

from __future__ import annotations

from typing import Any

import click

from noisescale.errors import NoisescaleError, SettingError
from noisescale.interrupts import Interrupted


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
            where = f"{error.filename}: " if error.filename else ""
            message = f"{where}{error.strerror or error}; nothing already written is damaged"
            raise click.ClickException(message) from error
        except Interrupted as interruption:
            click.echo(str(interruption), err=True)
            ctx.exit(interruption.exit_code)
        except KeyboardInterrupt:
            click.echo("Interrupted.", err=True)
            ctx.exit(130)
