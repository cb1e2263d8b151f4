"""noisescale critical-batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from noisescale.cli.help import Command
from noisescale.cli.options import (
    FOLDER,
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
    sampling_options,
    showing_what_is_found,
)
from noisescale.errors import SettingError
from noisescale.problems.config import FactoryConfig, ProblemConfig, resolve_device
from noisescale.studies.critical_batch.config import DEFAULT_WIDTH, PRESETS, CriticalBatchConfig
from noisescale.training.config import (
    OF_OPTIMIZER,
    OF_OPTIMIZER_LATER,
    OF_SAMPLING,
    TrainConfig,
)
from noisescale.training.records.names import digest, problem_name

if TYPE_CHECKING:
    from rich.console import Console

    from noisescale.studies.critical_batch.results import CriticalBatchResult

OF_PROBLEM = tuple(ProblemConfig.__dataclass_fields__)
OF_FRONT = (
    "goals",
    "factor",
    "max_rate",
    "epochs",
    "noise",
    "noise_examples",
    "preset",
)
OF_BRANCH = ("learning_rate", "examples", "tolerance", "scaling")
OF_BOTH = ("rate_bend",)
OF_UPDATE = (*OF_OPTIMIZER, *OF_OPTIMIZER_LATER, *OF_SAMPLING)
OF_RUNS = (
    "batch_sizes",
    "split",
    "num_seeds",
    "executor",
    "processes",
    "scheduler",
    "device",
    "problem",
)


@click.command(
    "critical-batch",
    cls=Command,
    short_help="Measure the critical batch size, and hold the noise scale against it.",
    epilog="""\b
Examples:
  noisescale critical-batch                               MNIST, in minutes
  noisescale critical-batch --goal 0.5 --goal 0.2 --seeds 5
  noisescale critical-batch --dataset digits --bs 4 --bs 16 --bs 64 --bs 256
  noisescale critical-batch --problem my_module:make_problem --lr-max 0.5
  noisescale critical-batch --from-csv runs.csv           fit anybody's results
  noisescale critical-batch --method branch runs/NAME-KEY/checkpoint.pt
  noisescale critical-batch --preset mnist-paper          the long form, an hour
""",
)
@click.argument("checkpoint", required=False, type=click.Path(path_type=Path))
@click.option(
    "--method",
    type=click.Choice(["pareto", "branch"]),
    default="pareto",
    show_default=True,
    help="pareto: runs to goals at tuned rates, and the fit of steps against examples. branch: "
    "from CHECKPOINT, several batch sizes compared after the same number of examples.",
)
@click.option(
    "--from-csv",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    metavar="FILE",
    help="Fit runs that are there already (- for stdin): columns batch_size and steps; goal, "
    "learning_rate, seed, censored and diverged if you have them. With seeds the intervals hold "
    "how far they differ.",
)
@click.option(
    "--bs",
    "batch_sizes",
    type=click.IntRange(min=1),
    metavar="N",
    multiple=True,
    help="Examples per update; repeat it, four times or more (branch: three).  [default: 1, 2, 4, "
    "… 2048, as the data allow; branch: the checkpoint's and its doubles]",
)
@click.option(
    "--goal",
    "goals",
    type=float,
    metavar="LOSS",
    multiple=True,
    help="A loss to reach; repeat it.  [default: .4, .25, .15, .1 and .07 of the loss at "
    "the start]",
)
@click.option(
    "--goal-split",
    "split",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Whose loss, on a fixed random subset of 2,000.",
)
@click.option(
    "--seeds",
    "num_seeds",
    type=int,
    help="Seeds; the errors come from them.  [default: 3; branch: 5]",
)
@click.option(
    "--factor",
    type=float,
    default=2.0,
    show_default=True,
    help="Between neighbouring learning rates.",
)
@click.option(
    "--lr-max",
    "max_rate",
    type=float,
    metavar="RATE",
    help="ε* of ε*/(1 + B*/B), on which the first rates are centred.  [default: of sgd ε_max "
    "by the curvature at the start, of others 1e-3]",
)
@click.option(
    "--lr-bend",
    "rate_bend",
    type=float,
    metavar="B",
    help="B* of that law.  [default: B_noise at the start]  branch: B_c of --lr-scaling noise.",
)
@click.option(
    "--epochs",
    type=int,
    default=20,
    show_default=True,
    help="Of the first (middle) batch size's runs, at most; the others' follow from what it takes.",
)
@click.option(
    "--noise/--no-noise",
    default=True,
    show_default=True,
    help="Measure B_simple and B_noise along runs near B_crit, and hold them against it.",
)
@click.option(
    "--noise-examples",
    type=click.IntRange(min=16),
    default=4000,
    show_default=True,
    help="On this many examples, another random subset for each seed.",
)
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    help="mnist-paper: 24 batch sizes from 1 to 4,096, rates √2 apart, six goals, five seeds. An "
    "option given beside it overrides it.",
)
@click.option(
    "--lr",
    "learning_rate",
    type=float,
    metavar="RATE",
    help="branch: the rate at the smallest batch size, of weights that are not noisescale's.",
)
@click.option(
    "--examples",
    type=int,
    help="branch: that each branch uses.  [default: half of those seen so far, 256 batches at "
    "least]",
)
@click.option(
    "--tolerance",
    type=float,
    default=0.05,
    show_default=True,
    metavar="SHARE",
    help="branch: losses within this share of the smallest batch size's count as equal. The "
    "answers for 1, 2, 5 and 10 % stand beside.",
)
@click.option(
    "--lr-scaling",
    "scaling",
    type=click.Choice(["linear", "sqrt", "noise"]),
    help="branch: how the rate follows the batch size; noise: as 1/(1 + B_c/B), B_c by --lr-bend, "
    "and batch sizes from 1 on in steps of √2 unless given.  [default: of sgd linear, of others "
    "sqrt]",
)
@own_problem_option
@optimizer_options
@sampling_options
@problem_options
@machine_options
@executor_options(
    "processes",
    "dask",
    help="Where the runs are: in local processes of one thread each, or on a Dask cluster.",
)
@click.option(
    "--out", type=FOLDER, help="Folder of the tables and runs.  [default: runs/critical-NAME-KEY]"
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the content of fit.json (branch: branch.json), not tables.",
)
@click.pass_context
def critical_batch(ctx: click.Context, /, **options: Any) -> None:
    """Measure the critical batch size, and hold the noise scale against it.

    At each batch size the learning rate is tuned, the steps to each of several losses are counted
    at the best one, and (S/S_min − 1)(E/E_min − 1) = 1 is fitted: B_crit = E_min/S_min with a 95 %
    interval. B_simple and B_noise, averaged along runs near it, stand beside.

    Every run is a folder of its own. The same command again runs only what is missing, so that a
    killed one goes on; with more seeds or batch sizes it runs only those.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    given = {
        name for name in options if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    check_executor(options)
    _check_method(ctx, options, given)
    if options["from_csv"] is not None:
        _from_csv(options)
        return
    options |= {
        name: value
        for name, value in PRESETS.get(options["preset"], {}).items()
        if name not in given
    }
    options["device"] = resolve_device(options["device"])
    if options["method"] == "branch":
        _branch(options, console)
    else:
        _pareto(options, console)


def _check_method(ctx: click.Context, options: dict[str, Any], given: set[str]) -> None:
    """SettingError for options that belong to another way of measuring."""

    def refuse(names: tuple[str, ...], why: str) -> None:
        if others := [flag(ctx, name) for name in names if name in given]:
            raise SettingError(f"{why}: leave out {', '.join(others)}")

    if options["from_csv"] is not None:
        kept = (
            "method",
            "checkpoint",
            *OF_FRONT,
            *OF_BRANCH,
            *OF_BOTH,
            *OF_PROBLEM,
            *OF_UPDATE,
            *OF_RUNS,
        )
        refuse(kept, "--from-csv runs nothing")
    elif options["method"] == "branch":
        if options["checkpoint"] is None:
            raise SettingError(
                "--method branch starts from a checkpoint: give its file or run folder"
            )
        refuse(OF_FRONT, "--method branch compares losses after equal examples")
        refuse(
            (*OF_PROBLEM, *OF_UPDATE),
            "--method branch takes problem and optimizer from the checkpoint",
        )
    else:
        if options["checkpoint"] is not None:
            raise SettingError(f"{options['checkpoint']}: a checkpoint goes with --method branch")
        refuse(OF_BRANCH, "--method pareto starts from initialisation and tunes the learning rate")
        if options["problem"] is not None:
            refuse_beside_problem(ctx, given, "preset")


def _from_csv(options: dict[str, Any]) -> None:
    from noisescale.cli.printing.critical_batch import print_fits
    from noisescale.statistics.critical_batch.goal_table import read_goal_table
    from noisescale.studies.critical_batch.config import SETTINGS
    from noisescale.studies.critical_batch.pictures import draw_front
    from noisescale.studies.critical_batch.results import analyse, write_fits

    if (out := options["out"]) is not None and (out / SETTINGS).exists():
        raise SettingError(
            f"{out} holds a measurement, whose tables would be lost: choose another --out"
        )
    result = analyse(read_goal_table(options["from_csv"]))
    if options["as_json"]:
        click.echo(json.dumps(result.to_dict(), indent=2, allow_nan=False))
    else:
        print_fits(result)
    if out is not None:
        write_fits(out, result)
        draw_front(out, title=options["from_csv"].name)
        click.echo(out, err=options["as_json"])


def _pareto(options: dict[str, Any], console: Console) -> None:
    from noisescale.cli.printing.critical_batch import print_fits
    from noisescale.studies.critical_batch.run import run_critical_batch
    from noisescale.studies.jobs.options import StudyOptions

    config, notes = _config(options, console)
    out = options["out"] or Path("runs") / _name(config)
    study_options = StudyOptions(
        device=options["device"], data_dir=options["data_dir"], console=console, notes=notes
    )

    def show(result: CriticalBatchResult) -> None:
        if options["as_json"]:
            click.echo(json.dumps(result.to_dict(), indent=2, allow_nan=False))
        else:
            print_fits(result)
        click.echo(out, err=options["as_json"])

    with showing_what_is_found(show), open_executor(options, console) as executor:
        result = run_critical_batch(config, out, executor=executor, options=study_options)
    show(result)
    _report_failures((result.summary or {})["failures"], out)


def _config(
    options: dict[str, Any], console: Console
) -> tuple[CriticalBatchConfig, tuple[str, ...]]:
    """The measurement that the options describe, and notes for its record."""
    from noisescale.problems.factory import factory_config

    notes: tuple[str, ...] = ()
    problem: ProblemConfig | FactoryConfig
    if options["problem"] is not None:
        problem = factory_config(options["problem"])
    else:
        chosen_data, notes = choose_dataset(options, console)
        options |= chosen_data
        if options["width"] is None and options["model"] == "mlp":
            options["width"] = DEFAULT_WIDTH
        problem = fill(ProblemConfig, options)
    config = CriticalBatchConfig(
        problem=problem,
        training=fill(TrainConfig, {name: options[name] for name in OF_UPDATE}),
        batch_sizes=tuple(dict.fromkeys(options["batch_sizes"])) or None,
        goals=tuple(dict.fromkeys(options["goals"])) or None,
        split=options["split"],
        num_seeds=_num_seeds(options, default=CriticalBatchConfig.num_seeds),
        factor=options["factor"],
        max_rate=options["max_rate"],
        rate_bend=options["rate_bend"],
        epochs=options["epochs"],
        noise_examples=options["noise_examples"] if options["noise"] else None,
    )
    return config, notes


def _name(config: CriticalBatchConfig) -> str:
    """A default folder name, by what its runs share, so that a larger measurement goes on in it."""
    return f"critical-{problem_name(config.problem)}-{digest(config.identity())}"


def _branch(options: dict[str, Any], console: Console) -> None:
    from noisescale.cli.printing.critical_batch import print_branches
    from noisescale.problems.factory import factory_config
    from noisescale.studies.critical_batch.branches import BranchConfig, run_branches
    from noisescale.studies.jobs.options import StudyOptions

    start: Path = options["checkpoint"]
    config = BranchConfig.from_checkpoint(
        start,
        problem=None if options["problem"] is None else factory_config(options["problem"]),
        batch_sizes=options["batch_sizes"],
        learning_rate=options["learning_rate"],
        examples=options["examples"],
        scaling=options["scaling"],
        rate_bend=options["rate_bend"],
        num_seeds=_num_seeds(options, default=BranchConfig.num_seeds),
        tolerance=options["tolerance"],
        split=options["split"],
    )
    out = options["out"] or Path("runs") / config.name()
    study_options = StudyOptions(
        device=options["device"], data_dir=options["data_dir"], console=console
    )
    with open_executor(options, console) as executor:
        result = run_branches(config, start, out, executor=executor, options=study_options)
    if options["as_json"]:
        click.echo(json.dumps(result.summary, indent=2, allow_nan=False))
    else:
        print_branches(result)
    click.echo(out, err=options["as_json"])
    _report_failures(result.summary["failures"], out)


def _num_seeds(options: dict[str, Any], *, default: int) -> int:
    number: int | None = options["num_seeds"]
    return default if number is None else number


def _report_failures(failures: list[str], out: Path) -> None:
    """ClickException where anything failed, with what of it is kept."""
    if failures:
        raise click.ClickException(
            f"{len(failures)} failed ({failures[0]}): what is finished in {out} is kept, and the "
            "same command tries the rest again"
        )
