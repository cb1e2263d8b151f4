"""noisescale train."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import click
from click.core import ParameterSource

from noisescale import config as settings
from noisescale.config import ProblemConfig, TrainConfig, run_name
from noisescale.errors import SettingError

Config = TypeVar("Config", ProblemConfig, TrainConfig)
Case = tuple[ProblemConfig, TrainConfig]

# Options that carry out a run without changing its result, and so go with --resume
_CARRYING_OUT = {"resume", "device", "data_dir", "force", "checkpoint_every", "log_dir", "as_json"}

# --preset three-cases: the study of README.md, "Three batch sizes on MNIST"
PRESETS: dict[str, dict[str, Any]] = {
    "three-cases": {
        "batch_sizes": (1024, 32, 1),
        "dataset": "mnist",
        "pixel_scale": "raw",
        "learning_rate": 1e-3,
        "epochs": 30,
    }
}


class BatchSize(click.ParamType):
    """A number of examples, or "full"."""

    name = "N|full"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "full":
            return value
        try:
            return TrainConfig(batch_size=int(value)).batch_size
        except ValueError:
            self.fail(f"{value!r}: give a whole number of 1 or more, or full", param, ctx)


@click.command(
    epilog="""\b
Examples:
  noisescale train --bs 32
  noisescale train --bs 1024 --bs 32 --bs 1 --epochs 3   compare batch sizes
  noisescale train --bs full --lr 0.5 --epochs 100       true gradient descent
  noisescale train --preset three-cases --epochs 2
  noisescale train --resume runs/mnist-mlp-bs32-lr0.01-44136fa3
"""
)
@click.option(
    "--bs", "batch_sizes", type=BatchSize(), multiple=True, default=(32,), show_default=True,
    help="Examples per update, or full for all of them; several to compare.",
)  # fmt: skip
@click.option("--lr", "learning_rate", type=float, default=TrainConfig.learning_rate, show_default=True, help="Learning rate, on the mean loss of the batch.")
@click.option("--epochs", type=int, default=TrainConfig.epochs, show_default=True, help="Passes over the training set.")
@click.option("--max-steps", type=int, help="Stop after so many updates, if that comes first.")
@click.option("--optimizer", type=click.Choice(get_args(settings.OptimizerName)), default=TrainConfig.optimizer, show_default=True)
@click.option("--momentum", type=float, default=TrainConfig.momentum, show_default=True, help="SGD's heavy-ball momentum.")
@click.option("--weight-decay", type=float, default=TrainConfig.weight_decay, show_default=True)
@click.option("--seed", type=int, default=TrainConfig.seed, show_default=True, help="Of the initial parameters and the order of the examples.")
@click.option("--dataset", type=click.Choice(["auto", *get_args(settings.DatasetName)]), default="auto", show_default=True, help="auto: MNIST, or digits where MNIST can be neither found nor downloaded.")
@click.option("--pixel-scale", type=click.Choice(get_args(settings.PixelScale)), default=ProblemConfig.pixel_scale, show_default=True, help="Divide pixels by their largest value before standardising, or not.")
@click.option("--num-train", type=int, help="Train on a random subset of so many examples.")
@click.option("--model", type=click.Choice(get_args(settings.ModelName)), default=ProblemConfig.model, show_default=True)
@click.option("--width", type=int, help="Hidden units (mlp, 1024) or first channels (cnn, 32).")
@click.option("--depth", type=int, help="Hidden layers (mlp, 2) or blocks (cnn, 2).")
@click.option("--norm", type=click.Choice(get_args(settings.Norm)), default=ProblemConfig.norm, show_default=True, help="Normalisation before each activation.")
@click.option("--preset", type=click.Choice(list(PRESETS)), help="three-cases: MNIST at raw pixels, lr 1e-3, 30 epochs, B = 1024, 32, 1. Options given beside it override it.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="auto: a GPU where there is one.")
@click.option("--data-dir", type=click.Path(path_type=Path, file_okay=False), help="Where data sets lie.  [default: $NOISESCALE_DATA, else the user cache]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Run folder; with several --bs, the folder of their run folders.  [default: runs/NAME-KEY]")
@click.option("--resume", type=click.Path(path_type=Path, file_okay=False, exists=True), help="Continue the run in this folder; its own settings hold.")
@click.option("--force", is_flag=True, help="Recompute a finished run, replace another's folder.")
@click.option("--checkpoint-every", type=click.IntRange(min=1), metavar="STEPS", help="Also keep checkpoints/step-N.pt.")
@click.option("--log-dir", type=click.Path(path_type=Path, file_okay=False), help="Also write TensorBoard events there.")
@click.option("--json", "as_json", is_flag=True, help="Print the summaries as JSON instead of a table.")
@click.pass_context
def train(ctx: click.Context, **options: Any) -> None:
    """Train a model at one or several batch sizes and see what the batch size does.

    Each run leaves its configuration, metrics per epoch, checkpoint, confusion matrix and curves in a folder
    of its own. The same command again prints what is stored; a killed run is continued by the same command or
    by --resume. A loss that stops being finite ends that run and is recorded as its result.
    """
    from rich.console import Console

    from noisescale.cli.report import print_comparison
    from noisescale.run import RunOptions, run_training

    console = Console(stderr=True)
    given = {name for name in options if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT}
    notes: tuple[str, ...] = ()
    if options["resume"] is not None:
        cases = [_stored_case(options["resume"], given)]
    else:
        if options["preset"] is not None:
            options |= {name: value for name, value in PRESETS[options["preset"]].items() if name not in given}
        options["dataset"], notes = _dataset(options, console)
        cases = _cases(options)
    summaries = []
    for path, (problem, training) in cases:
        run_options = RunOptions(
            device=_device(options["device"]), data_dir=options["data_dir"], force=options["force"],
            checkpoint_every=options["checkpoint_every"], log_dir=options["log_dir"], console=console, notes=notes,
        )  # fmt: skip
        summaries.append({"run": str(path), **run_training(problem, training, path, run_options)})
    if options["as_json"]:
        click.echo(json.dumps(summaries, indent=2, allow_nan=False))
    else:
        print_comparison(summaries)
        for summary in summaries:
            click.echo(summary["run"])


def _cases(options: dict[str, Any]) -> list[tuple[Path, Case]]:
    """A folder and a configuration for each batch size, repeated ones dropped."""
    problem = _fill(ProblemConfig, options)
    batch_sizes = list(dict.fromkeys(options["batch_sizes"]))
    cases = []
    for batch_size in batch_sizes:
        training = _fill(TrainConfig, options | {"batch_size": batch_size})
        out: Path | None = options["out"]
        if out is None:
            path = Path("runs") / run_name(problem, training)
        else:
            path = out if len(batch_sizes) == 1 else out / f"bs{batch_size}"
        cases.append((path, (problem, training)))
    return cases


def _fill(config: type[Config], options: dict[str, Any]) -> Config:
    return config(**{field.name: options[field.name] for field in dataclasses.fields(config) if field.name in options})


def _stored_case(path: Path, given: set[str]) -> tuple[Path, Case]:
    """The configuration in a run folder that is to be continued."""
    from noisescale.errors import RunFolderError
    from noisescale.store import CONFIG, read_json

    if others := sorted(given - _CARRYING_OUT):
        raise SettingError(
            f"--resume continues a run with its own settings: leave out {', '.join('--' + name.replace('_', '-') for name in others)}"
        )
    stored = read_json(path / CONFIG)
    if stored is None:
        raise RunFolderError(f"{path} has no {CONFIG}: give the folder of a run made by noisescale train")
    try:
        return path, (ProblemConfig.from_dict(stored["problem"]), TrainConfig.from_dict(stored["training"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{path / CONFIG} is not a run's configuration: {error}") from error


def _dataset(options: dict[str, Any], console: Any) -> tuple[str, tuple[str, ...]]:
    from noisescale.data import resolve_dataset

    name, substitution = resolve_dataset(options["dataset"], options["data_dir"])
    if substitution is None:
        return name, ()
    console.print(f"NOTE: {substitution}", style="bold yellow", highlight=False, markup=False, soft_wrap=True)
    return name, (substitution,)


def _device(name: Literal["auto", "cpu", "cuda"]) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingError("--device cuda: torch sees no GPU here; use --device cpu, or auto to take one where there is one")
    return name
