"""The command line: each command parses, calls one library function, reports."""

from __future__ import annotations

from typing import Any

import click

from noisescale._version import __version__
from noisescale.cli.train import train
from noisescale.errors import NoisescaleError, SettingError
from noisescale.interrupts import Interrupted


class _Commands(click.Group):
    """Turns the failures a user can meet into one message and an exit code: 2 for usage, 1 for the rest."""

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


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="noisescale")
def main() -> None:
    """Gradient noise, stability and critical batch size of PyTorch models.

    Tables and JSON go to stdout, progress and notes to stderr, and artefacts to a run folder whose path is
    printed last. Exit codes: 0 done, 1 the work failed, 2 bad usage, 130 interrupted (and saved).
    """


main.add_command(train)
