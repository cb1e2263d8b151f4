"""noisescale sweep-lr."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from noisescale.cli.help import Command
from noisescale.cli.options import (
    FOLDER,
    BatchSize,
    check_executor,
    choose_dataset,
    executor_options,
    fill,
    flag,
    machine_options,
    open_executor,
    optimizer_options,
    own_problem_option,
    problem_options,
    refuse_beside_problem,
    showing_what_is_found,
)
from noisescale.errors import SettingError
from noisescale.problems.config import FactoryConfig, ProblemConfig, resolve_device
from noisescale.studies.stability_map.config import (
    DEFAULT_BATCH_SIZES,
    DEFAULT_WIDTH,
    FOLD_RATES,
    MINIMUM_STEPS,
    PRESETS,
    Horizon,
    SweepConfig,
)
from noisescale.training.config import OF_OPTIMIZER, OF_OPTIMIZER_LATER, TrainConfig
from noisescale.training.records.names import digest, problem_name

if TYPE_CHECKING:
    from rich.console import Console

    from noisescale.studies.stability_map.results import SweepResult

HORIZONS = ("epochs", "steps", "examples")
GRID = ("lr_min", "lr_max", "num_lr", "factor", "num_seeds", "precision", "max_seeds", "folds")


@click.command(
    cls=Command,
    short_help="Map which learning rates are stable at which batch size.",
    epilog="""\b
Examples:
  noisescale sweep-lr                                     the map, in minutes
  noisescale sweep-lr --pixel-scale raw --seeds 8
  noisescale sweep-lr --bs 1 --bs 32 --num-lr 12 --lr-min 1e-3 --lr-max 1
  noisescale sweep-lr --problem my_file.py:make_problem --bs 8 --bs 64
  noisescale sweep-lr --folds 5 --bs 32 --lr-min .01 --lr-max 1
  noisescale sweep-lr --from runs/NAME-KEY/checkpoint.pt --steps 2000
  noisescale sweep-lr --executor dask --scheduler tcp://HOST:8786
""",
)
@click.option(
    "--bs",
    "batch_sizes",
    type=BatchSize(),
    metavar="N|full",
    multiple=True,
    help="Examples per update; repeat it.  [default: 1, 4, 16, 64, 256 and 1024, as the data "
    "allow]",
)
@click.option(
    "--lr-min",
    type=float,
    help="Smallest learning rate.  [default: of sgd by the curvature at the start, of others 1e-5]",
)
@click.option(
    "--lr-max", type=float, help="Largest learning rate.  [default: 10⁵ times the smallest]"
)
@click.option(
    "--num-lr",
    type=int,
    metavar="N",
    help="Run N rates, even in log η, each with every seed, instead of bisecting.",
)
@click.option(
    "--bisect",
    is_flag=True,
    help="Locate η_max(B) by bisection: a scan with the first seed, then a few runs of each.  "
    "[default]",
)
@click.option(
    "--factor",
    type=float,
    default=1.25,
    show_default=True,
    help="Bisection ends between neighbouring rates this far apart.",
)
@click.option(
    "--seeds",
    "num_seeds",
    type=int,
    default=SweepConfig.num_seeds,
    show_default=True,
    help="Seeds of every batch size.",
)
@click.option(
    "--precision",
    type=float,
    metavar="FACTOR",
    help="Add seeds until the interval of each η_max spans no more than this factor.",
)
@click.option(
    "--max-seeds",
    type=int,
    default=40,
    show_default=True,
    help="With --precision: this many at most.",
)
@click.option(
    "--folds",
    type=int,
    metavar="K",
    help="Choose each batch size's rate by K-fold cross-validation: each rate is run K times, with "
    "another part of the training examples held out.  [with it, --num-lr: "
    f"{FOLD_RATES}]",
)
@click.option("--epochs", type=int, help="Length of each run, in epochs.  [default: 1]")
@click.option(
    "--steps",
    type=int,
    help=f"Length of each run, in updates.  [default with --from: {MINIMUM_STEPS}]",
)
@click.option("--examples", type=int, help="Length of each run, in examples.")
@click.option(
    "--from",
    "start",
    type=click.Path(path_type=Path),
    metavar="CHECKPOINT",
    help="Start from a checkpoint of noisescale train: does SGD leave the minimum it is in?",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="three-cases: MNIST at raw pixels, width 1024, B = 1, 32 and 1024. An option given beside "
    "it overrides it.",
)
@own_problem_option
@optimizer_options
@problem_options
@machine_options
@executor_options(
    "auto",
    "processes",
    "replicas",
    "dask",
    help="Where cells run: in local processes of one thread each (auto on a CPU); several at once "
    "as one vmapped program (auto on a GPU); on a Dask cluster.",
)
@click.option(
    "--predict/--no-predict",
    default=True,
    show_default=True,
    help="Measure the predicted edges as well (plain SGD only).",
)
@click.option(
    "--out", type=FOLDER, help="Folder of the map and its cells.  [default: runs/sweep-NAME-KEY]"
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print boundary and summary as JSON, not as a table."
)
@click.pass_context
def sweep_lr(ctx: click.Context, /, **options: Any) -> None:
    """Map which learning rates are stable at which batch size, with predictions drawn over it.

    From initialisation: which runs diverge? With --from: which leave the minimum they start from
    (their loss, looked at some 70 times, is seen above ten times its start)? η_max(B), where half
    of the seeds do, comes with a 95 % interval.

    Every cell is a run folder of its own. The same command again runs only what is missing, so a
    killed sweep goes on; with more seeds or batch sizes it runs only those.
    """
    from rich.console import Console

    from noisescale.cli.printing.stability_map import print_sweep, sweep_record
    from noisescale.studies.stability_map.run import SweepOptions, run_sweep

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    given = {
        name for name in options if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    if options["bisect"] and options["num_lr"] is not None:
        raise SettingError("--bisect and --num-lr: give one of them")
    if options["folds"] is not None:
        _take_folds(ctx, options, given)
    check_executor(options)
    options |= {
        name: value
        for name, value in PRESETS.get(options["preset"], {}).items()
        if name not in given
    }
    options["device"] = resolve_device(options["device"])
    config, notes = _config(ctx, options, given, console)
    out = options["out"] or Path("runs") / sweep_name(config)
    sweep_options = SweepOptions(
        start=options["start"],
        device=options["device"],
        data_dir=options["data_dir"],
        predict=options["predict"],
        console=console,
        notes=notes,
    )

    def show(result: SweepResult) -> None:
        if options["as_json"]:
            click.echo(json.dumps(sweep_record(result), indent=2, allow_nan=False))
        else:
            print_sweep(result)
        click.echo(out, err=options["as_json"])

    with showing_what_is_found(show), open_executor(options, console) as executor:
        result = run_sweep(config, out, executor=executor, options=sweep_options)
    show(result)
    if result.summary["failures"]:
        count = len(result.summary["failures"])
        raise click.ClickException(
            f"{count} failed, see the failures in {out / 'summary.json'}: the same command tries "
            "them again"
        )


def _take_folds(ctx: click.Context, options: dict[str, Any], given: set[str]) -> None:
    """Puts the grid that folds take into `options`; SettingError beside what chooses otherwise."""
    beside = ("bisect", "num_seeds", "precision", "max_seeds", "factor", "start")
    if others := [flag(ctx, name) for name in beside if name in given]:
        raise SettingError(
            f"--folds runs every rate once with each fold: leave out {', '.join(others)}"
        )
    options["num_seeds"] = options["folds"]
    if options["num_lr"] is None:
        options["num_lr"] = FOLD_RATES


def sweep_name(config: SweepConfig) -> str:
    """A sweep's default folder name, by what its cells share: a larger one goes on in it."""
    problem = config.problem
    kind = "sweep" if config.start is None else "sweep-from"
    key = digest(config.identity())
    pixels = ""
    if isinstance(problem, ProblemConfig) and not problem.is_text:
        pixels = f"-{problem.pixel_scale}"
    return f"{kind}-{problem_name(problem)}{pixels}-{key}"


def _config(
    ctx: click.Context, options: dict[str, Any], given: set[str], console: Console
) -> tuple[SweepConfig, tuple[str, ...]]:
    """The sweep that the options describe, and notes for its record.

    `options` get the data set that "auto" means, the default width, and the file that --from means.
    """
    from noisescale.cli.checkpoints import where_from
    from noisescale.problems.factory import factory_config
    from noisescale.studies.jobs.cell import count_examples
    from noisescale.training.records.names import file_digest

    problem: ProblemConfig | FactoryConfig
    own = None if options["problem"] is None else factory_config(options["problem"])
    if own is not None:
        refuse_beside_problem(ctx, given, "preset")
    notes: tuple[str, ...] = ()
    start, start_digest = options["start"], None
    if start is None and own is not None:
        problem = own
    elif start is None:
        chosen_data, notes = choose_dataset(options, console)
        options |= chosen_data
        if options["width"] is None and options["model"] == "mlp":
            options["width"] = DEFAULT_WIDTH
        problem = fill(ProblemConfig, options)
    else:
        from noisescale.training.records.checkpoint import load_checkpoint
        from noisescale.training.records.folder import CHECKPOINT

        fields = {field.name for field in dataclasses.fields(ProblemConfig)}
        if others := [flag(ctx, name) for name in sorted(given & (fields | {"preset"}))]:
            raise SettingError(
                f"--from takes its problem from the checkpoint: leave out {', '.join(others)}"
            )
        options["start"] = start = start / CHECKPOINT if start.is_dir() else start
        stored = load_checkpoint(start).problem
        if own is not None:
            problem = own
        elif isinstance(stored, ProblemConfig):
            problem = stored
        else:
            raise SettingError(f"{start} {where_from(stored)}")
        start_digest = file_digest(start)
    lengths = {name: options[name] for name in HORIZONS if options[name] is not None}
    if len(lengths) > 1:
        names = " and ".join(f"--{name}" for name in lengths)
        raise SettingError(f"{names}: give one length of the runs")
    default = {"epochs": 1} if start is None else {"steps": MINIMUM_STEPS}
    num_examples = count_examples(problem)
    sizes = tuple(dict.fromkeys(options["batch_sizes"]))
    config = SweepConfig(
        problem=problem,
        training=fill(
            TrainConfig, {name: options[name] for name in (*OF_OPTIMIZER, *OF_OPTIMIZER_LATER)}
        ),
        batch_sizes=sizes or tuple(size for size in DEFAULT_BATCH_SIZES if size <= num_examples),
        horizon=Horizon(**(lengths or default)),
        start=start_digest,
        **{name: options[name] for name in GRID},
    )
    return config, notes
