"""Options that say what is trained or measured: each mirrors a field of ProblemConfig."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import click

from noisescale.cli.options.forms import Command, flag, together
from noisescale.errors import SettingError
from noisescale.problems.config import (
    TEXTS,
    DatasetName,
    LossName,
    ModelName,
    Norm,
    PixelScale,
    ProblemConfig,
)

if TYPE_CHECKING:
    from rich.console import Console


def problem_options(command: Command) -> Command:
    """The fields of ProblemConfig, with the data set "auto" besides."""
    return together(
        click.option(
            "--dataset",
            type=click.Choice(["auto", *get_args(DatasetName)]),
            metavar="NAME",
            default="auto",
            show_default=True,
            help="mnist, fashion-mnist or digits; shakespeare, markov (made here) or text (see "
            "--text). auto: MNIST, or digits where MNIST can be neither found nor downloaded; with "
            "--model gpt shakespeare, or markov.",
        ),
        click.option(
            "--text",
            metavar="FILE",
            help="A text file of your own, character by character: UTF-8, or any bytes.",
        ),
        click.option(
            "--pixel-scale",
            type=click.Choice(get_args(PixelScale)),
            default=ProblemConfig.pixel_scale,
            show_default=True,
            help="Divide pixels by their largest value before standardising (unit), or not (raw).",
        ),
        click.option(
            "--num-train",
            type=int,
            metavar="N",
            help="Train on the first N of one fixed shuffle of the training images, the same for "
            "every seed.  [default: all]",
        ),
        click.option(
            "--label-noise",
            type=float,
            metavar="p",
            default=ProblemConfig.label_noise,
            show_default=True,
            help="Share of the training labels that another class replaces, the same ones for "
            "every seed, and at a larger p as well.",
        ),
        click.option(
            "--classes",
            type=int,
            metavar="k",
            help="Images of the first k classes alone.  [default: all]",
        ),
        click.option(
            "--imbalance",
            type=float,
            metavar="RATIO",
            default=ProblemConfig.imbalance,
            show_default=True,
            help="Training images of the first class for one of the last, those between by equal "
            "factors.",
        ),
        click.option(
            "--model",
            type=click.Choice(get_args(ModelName)),
            help="mlp or cnn of images, gpt of texts.  [default: mlp, of texts gpt]",
        ),
        click.option(
            "--width",
            type=int,
            help="Hidden units (mlp: 1024), first channels (cnn: 32) or embedding (gpt: 64).",
        ),
        click.option(
            "--depth", type=int, help="Hidden layers (mlp: 2) or blocks (cnn: 2, gpt: 4)."
        ),
        click.option("--heads", type=int, help="Of attention (gpt: 4); they divide the width."),
        click.option("--context", type=int, help="Characters of a sequence (gpt: 64)."),
        click.option(
            "--tied", is_flag=True, help="gpt: the last layer shares the characters' embedding."
        ),
        click.option(
            "--norm",
            type=click.Choice(get_args(Norm)),
            default=ProblemConfig.norm,
            show_default=True,
            help="Normalisation before each activation, of mlp and cnn; ghost: batch norm over "
            "parts of a batch.",
        ),
        click.option(
            "--ghost-size",
            type=int,
            metavar="b",
            help="--norm ghost: examples normalised together; what a batch leaves over is a part "
            "of fewer.",
        ),
        click.option(
            "--loss",
            type=click.Choice(get_args(LossName)),
            default=ProblemConfig.loss,
            show_default=True,
            help="mse: half the summed squared error against one-hot classes.",
        ),
    )(command)


def own_problem_option(command: Command) -> Command:
    """A problem of the user's own in the place of those of `problem_options`."""
    return click.option(
        "--problem",
        metavar="FILE.py:FACTORY",
        help="A function of your own (or MODULE:FACTORY) that returns a noisescale.Problem, in the "
        "place of --dataset, --model and the like; one that takes an argument named seed is given "
        "the run's.",
    )(command)


def refuse_beside_problem(ctx: click.Context, given: set[str], *others: str) -> None:
    """SettingError for options that say what is trained, given beside --problem.

    Args:
        ctx: of the command.
        given: the names of the options that were given.
        *others: options beside the fields of ProblemConfig that do not go with it.
    """
    names = (*ProblemConfig.__dataclass_fields__, *others)
    if refused := [flag(ctx, name) for name in names if name in given]:
        raise SettingError(f"--problem says what is trained: leave out {', '.join(refused)}")


def choose_dataset(
    options: dict[str, Any], console: Console
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The data set and the model to use, and a note for the run's record on what is not hoped for.

    Args:
        options: of the command; a model that was not given is the data set's own.
        console: where the note goes.
    """
    from noisescale.problems.data.splits import resolve_dataset
    from noisescale.training.console import NOTE_STYLE

    asked, model = options["dataset"], options["model"]
    if asked == "auto" and options["text"] is not None:
        asked = "text"
    if asked == "text" and options["text"] is None:
        raise SettingError("--dataset text without a file: give it as --text FILE")
    if options["text"] is not None and asked != "text":
        raise SettingError(f"--text beside --dataset {asked}: leave one of them out")
    is_text = asked in TEXTS or (asked == "auto" and model == "gpt")
    name, substitution = resolve_dataset(asked, options["data_dir"], text=is_text)
    chosen = {"dataset": name, "model": model or ("gpt" if is_text else ProblemConfig.model)}
    if substitution is None:
        return chosen, ()
    console.print(f"NOTE: {substitution}", style=f"bold {NOTE_STYLE}", markup=False)
    return chosen, (substitution,)
