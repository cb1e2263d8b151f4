"""noisescale train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from noisescale.cli.help import Command
from noisescale.cli.options import (
    FOLDER,
    BatchSize,
    Steps,
    adaptive_options,
    choose_dataset,
    fill,
    flag,
    machine_options,
    own_problem_option,
    problem_options,
    refuse_beside_problem,
    training_options,
)
from noisescale.errors import RunFolderError, SettingError
from noisescale.problems.config import (
    FactoryConfig,
    ObjectConfig,
    ProblemConfig,
    resolve_device,
)
from noisescale.training.config import ADAPTIVE_DEFAULTS, TrainConfig
from noisescale.training.records.names import run_name

if TYPE_CHECKING:
    from noisescale.training.tracking.noise import NoiseTracking

Case = tuple[Path, ProblemConfig | FactoryConfig, TrainConfig]
NOISE_EXAMPLES = 10_000  # as NoiseTracking has it, without importing torch
# The three-case study, which the README describes
PRESETS: dict[str, dict[str, Any]] = {
    "three-cases": {
        "batch_sizes": (1024, 32, 1),
        "dataset": "mnist",
        "pixel_scale": "raw",
        "learning_rate": 1e-3,
        "epochs": 30,
    }
}
# Options that carry out a run without changing its result, and so go with --resume
MEASURING = ("checkpoint_every", "evaluate_every", "measure_sharpness_every", "sharpness_examples")
TRACKING = (
    "measure_noise_every",
    "noise_examples",
    "noise_hessian",
    "noise_per_layer",
    "noise_geometry",
    "noise_sign",
)
CARRYING_OUT = {
    "resume",
    "problem",
    "device",
    "data_dir",
    "log_dir",
    "as_json",
    *MEASURING,
    *TRACKING,
}


@click.command(
    cls=Command,
    short_help="Train at one or several batch sizes.",
    epilog="""\b
Examples:
  noisescale train --bs 32
  noisescale train --bs 1024 --bs 32 --bs 1 --epochs 3    compare batch sizes
  noisescale train --bs full --lr 0.5 --epochs 100        true gradient descent
  noisescale train --bs 128 --epochs 1 --measure-noise-every log
  noisescale train --bs adaptive --bs 128 --lr 0.05 --lr-scaling noise
  noisescale train --problem my_file.py:make_problem --bs 16 --bs 128 --lr 0.1
  noisescale train --preset three-cases --epochs 2
  noisescale train --resume runs/NAME-KEY                 go on after a kill
""",
)
@click.option(
    "--bs",
    "batch_sizes",
    type=BatchSize(),
    metavar="N|full|adaptive",
    multiple=True,
    default=(TrainConfig.batch_size,),
    show_default=True,
    help="Examples per update; full for all; adaptive to follow the noise scale. "
    "Several to compare.",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="three-cases: MNIST at raw pixels, lr 1e-3, 30 epochs, B = 1024, 32 and 1. "
    "An option given beside it overrides it.",
)
@training_options
@adaptive_options
@own_problem_option
@problem_options
@machine_options
@click.option(
    "--out",
    type=FOLDER,
    help="Run folder; with several --bs, the folder of theirs.  [default: runs/NAME-KEY]",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Continue the run in this folder, with its own settings; of a problem of your own, beside "
    "the same --problem.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Recompute a finished run, or replace another's, which stays in .replaced in its folder "
    "until the new one is finished.",
)
@click.option(
    "--checkpoint-every",
    type=click.IntRange(min=1),
    metavar="STEPS",
    help="Also keep checkpoints/step-N.pt.",
)
@click.option(
    "--evaluate-every",
    type=click.IntRange(min=1),
    metavar="EPOCHS",
    default=1,
    show_default=True,
    help="Epochs between evaluations, each saved; with --bs full an epoch is one step.",
)
@click.option(
    "--measure-noise-every",
    type=Steps(),
    metavar="STEPS|log",
    help="Also keep noise.csv: |G|², tr Σ and B_simple with errors; "
    "log: at eight steps in each decade.",
)
@click.option(
    "--noise-examples",
    type=click.IntRange(min=3),
    metavar="N",
    default=NOISE_EXAMPLES,
    show_default=True,
    help="Measure noise on a random subset of N training examples.",
)
@click.option(
    "--noise-hessian", is_flag=True, help="B_noise as well, each time 32 to 60 Hessian products."
)
@click.option(
    "--noise-per-layer", is_flag=True, help="Every parameter tensor's as well, in noise_layers.csv."
)
@click.option(
    "--noise-geometry",
    type=click.Choice(["plain", "optimizer", "both"]),
    help="plain: B_simple; optimizer: B^P_simple, of gradients scaled as Adam scales its steps.  "
    "[default: both for adam, adamw and rmsprop, else plain]",
)
@click.option(
    "--noise-sign",
    is_flag=True,
    help="B_ℓ1 = ‖σ‖₁²/‖G‖₁² of sign descent as well, in a further pass over the examples.",
)
@click.option(
    "--measure-sharpness-every",
    type=Steps(),
    metavar="STEPS|log",
    help="Also keep sharpness.csv: the largest Hessian eigenvalue and the batch sharpness.",
)
@click.option(
    "--sharpness-examples",
    type=click.IntRange(min=1),
    metavar="N",
    default=10_000,
    show_default=True,
    help="Measure sharpness on a random subset of N training examples.",
)
@click.option("--log-dir", type=FOLDER, help="Also write TensorBoard events there.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the summaries as JSON, not as a table."
)
@click.pass_context
def train(ctx: click.Context, /, **options: Any) -> None:
    """Train at one or several batch sizes and see what the batch size does.

    Each run leaves its configuration, metrics per epoch, checkpoint, confusion matrix and curves in
    a folder of its own; --problem trains a model of your own. The same command again prints what is
    stored; a run that was killed is continued by the same command or by --resume. A loss that is no
    longer finite ends its run and is recorded as the result. Several batch sizes also leave
    comparison.csv, a row for each run, and a picture of their losses against steps and against
    examples.
    """
    from rich.console import Console

    from noisescale.cli.printing.training import print_comparison
    from noisescale.problems.factory import seeding_notes
    from noisescale.training.console import NOTE_STYLE
    from noisescale.training.run import RunOptions, run_training

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    _check_tracking(ctx, options)
    given = {
        name for name in options if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    notes: tuple[str, ...] = ()
    if options["resume"] is not None:
        cases = [_stored_case(ctx, options["resume"], given, own=options["problem"])]
    else:
        preset = PRESETS.get(options["preset"], {})
        options |= {name: value for name, value in preset.items() if name not in given}
        if options["problem"] is None:
            chosen_data, notes = choose_dataset(options, console)
            options |= chosen_data
        else:
            refuse_beside_problem(ctx, given, "preset")
        cases = _cases(options)
    _check(cases, force=options["force"])
    _, problem, training = cases[0]
    for note in seeding_notes(problem, num_seeds=1 + training.seed):  # which the runs record
        console.print(f"NOTE: {note}", style=NOTE_STYLE, markup=False)
    run_options = RunOptions(
        device=resolve_device(options["device"]),
        data_dir=options["data_dir"],
        force=options["force"],
        **{name: options[name] for name in MEASURING},
        noise=_noise_tracking(options),
        log_dir=options["log_dir"],
        console=console,
        notes=notes,
    )
    summaries = [
        {"run": str(path), **run_training(problem, training, path, run_options)}
        for path, problem, training in cases
    ]
    if len(cases) > 1:
        _compare([path for path, _, _ in cases], out=options["out"])
    if options["as_json"]:
        click.echo(json.dumps(summaries, indent=2, allow_nan=False))
    else:
        print_comparison(summaries)
        for summary in summaries:
            click.echo(summary["run"])


def _compare(folders: list[Path], *, out: Path | None) -> None:
    """Leaves a table of the runs and a picture of their losses beside their folders."""
    from noisescale.studies.jobs.folder import changes
    from noisescale.training.records.comparison import (
        COMPARISON,
        comparison_name,
        draw_comparison,
        write_comparison,
    )
    from noisescale.training.records.folder import may_write

    name = COMPARISON if out is not None else comparison_name(folders)
    table = folders[0].parent / name
    if not may_write(table.parent):
        return
    has_changed = changes(table.parent, name)
    write_comparison(folders, table)
    if has_changed() or not table.with_suffix(".png").exists():
        draw_comparison(table)


def _check_tracking(ctx: click.Context, options: dict[str, Any]) -> None:
    """SettingError for how to measure what is not measured."""
    for name in TRACKING[1:]:
        given = ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
        if given and options["measure_noise_every"] is None:
            raise SettingError(
                f"{flag(ctx, name)} without --measure-noise-every: give that too, such as log"
            )


def _noise_tracking(options: dict[str, Any]) -> NoiseTracking | None:
    from noisescale.training.tracking.noise import NoiseTracking

    if options["measure_noise_every"] is None:
        return None
    return NoiseTracking(
        every=options["measure_noise_every"],
        num_examples=options["noise_examples"],
        hessian=options["noise_hessian"],
        per_layer=options["noise_per_layer"],
        geometry=options["noise_geometry"],
        sign=options["noise_sign"],
    )


def _cases(options: dict[str, Any]) -> list[Case]:
    """A folder and the configurations for each batch size; a repeated one counts once."""
    from noisescale.problems.factory import factory_config

    own = options["problem"]
    problem = fill(ProblemConfig, options) if own is None else factory_config(own)
    batch_sizes = list(dict.fromkeys(options["batch_sizes"]))
    out: Path | None = options["out"]
    cases = []
    for batch_size in batch_sizes:
        settings = options | {"batch_size": batch_size}
        if batch_size != "adaptive" and "adaptive" in batch_sizes:  # its options are no others'
            for name in ADAPTIVE_DEFAULTS:
                settings.pop(name, None)
        training = fill(TrainConfig, settings)
        if out is None:
            path = Path("runs") / run_name(problem, training)
        else:
            path = out / f"bs{batch_size}" if len(batch_sizes) > 1 else out
        cases.append((path, problem, training))
    return cases


def _stored_case(ctx: click.Context, path: Path, given: set[str], *, own: str | None) -> Case:
    """The configurations in a run folder that is to be continued; own: what --problem names."""
    from noisescale.cli.checkpoints import where_from
    from noisescale.problems.factory import factory_config
    from noisescale.training.records.folder import CONFIG, parse_config, read_json
    from noisescale.training.records.names import describe_problem

    if others := [flag(ctx, name) for name in sorted(given - CARRYING_OUT)]:
        raise SettingError(
            f"--resume continues a run with its own settings: leave out {', '.join(others)}"
        )
    stored = read_json(path / CONFIG)
    if stored is None:
        raise RunFolderError(
            f"{path} has no {CONFIG}: give the folder of a run of noisescale train"
        )
    problem, training = parse_config(path, stored)
    if isinstance(problem, ObjectConfig):
        raise RunFolderError(
            f"{path} trains a Problem that was given in Python ({problem.model}): continue it "
            "there, by the same call of run_training"
        )
    if own is None and isinstance(problem, FactoryConfig):
        raise RunFolderError(f"{path} {where_from(problem)}")
    if own is not None and factory_config(own) != problem:
        trained = describe_problem(problem)
        changed = f"{own}, whose file has changed since" if trained == own else trained
        raise RunFolderError(
            f"{path} trains {changed}: continue it with that as it was, or train the new one in "
            "another folder"
        )
    return path, problem, training


def _check(cases: list[Case], *, force: bool) -> None:
    """Raises what would stop a later case, before an earlier one has trained for an hour."""
    from noisescale.studies.jobs.cell import count_examples
    from noisescale.training.config import resolve_batch_size
    from noisescale.training.records.folder import folder_state

    for path, problem, training in cases:
        resolve_batch_size(training, count_examples(problem))
        if not force:
            folder_state(path, {"problem": problem.to_dict(), "training": training.to_dict()})
