"""noisescale recommend."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from noisescale.cli.help import Command
from noisescale.cli.options import (
    FOLDER,
    batch_schedule_options,
    choose_dataset,
    fill,
    flag,
    machine_options,
    optimizer_options,
    problem_options,
)
from noisescale.errors import MeasurementError, SettingError
from noisescale.problems.config import FactoryConfig, ProblemConfig, resolve_device
from noisescale.studies.recommend.config import DEFAULT_EPOCHS, LONGEST, RecommendConfig
from noisescale.training.config import OF_OPTIMIZER, OF_OPTIMIZER_LATER, TrainConfig
from noisescale.training.records.names import digest, problem_name

if TYPE_CHECKING:
    from rich.console import Console

    from noisescale.cli.checkpoints import Loaded

OF_PROBLEM = tuple(ProblemConfig.__dataclass_fields__)
OPTIMIZER = (*OF_OPTIMIZER, *OF_OPTIMIZER_LATER)
OF_TRAINING = (*OPTIMIZER, "learning_rate", "epochs", "out", "force")


@click.command(
    cls=Command,
    short_help="Which batch size, and which learning rate: an answer within minutes.",
    epilog="""\b
Examples:
  noisescale recommend my_model.py:make                   your own model and data
  noisescale recommend my_model.py:make --bs 128 --optimizer adamw --lr 3e-4
  noisescale recommend --dataset digits --minutes 1
  noisescale recommend runs/NAME-KEY                      a run, tracked or not
  noisescale recommend runs/NAME-KEY --schedule olmo      a batch size that grows
  noisescale recommend weights.pt --problem my_model.py:make
""",
)
@click.argument("target", required=False, metavar="[FILE.py:FACTORY|RUN|CHECKPOINT]")
@click.option(
    "--problem",
    metavar="FILE.py:FACTORY",
    help="The problem of the weights given as the argument, where noisescale did not write them; "
    "otherwise the same as giving it as the argument.",
)
@click.option(
    "--bs",
    "batch_size",
    type=click.IntRange(min=1),
    metavar="N",
    help="The batch size in use, at which the runs are made.  [default: a middle one]",
)
@click.option(
    "--lr",
    "learning_rate",
    type=float,
    help="The learning rate in use, with which the search begins.  [default: by the gradient]",
)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0, min_open=True, max=LONGEST),
    default=RecommendConfig.minutes,
    show_default=True,
    help="A limit for all of it; what there is no time for is left out, and named.",
)
@click.option(
    "--epochs",
    type=int,
    default=DEFAULT_EPOCHS,
    show_default=True,
    help="How many you mean to train for; the tracked run is as long, if the time allows.",
)
@optimizer_options
@batch_schedule_options
@click.option(
    "--seed",
    type=int,
    default=TrainConfig.seed,
    show_default=True,
    help="Of the initial parameters, the order of the examples and those measured on.",
)
@problem_options
@machine_options
@click.option(
    "--out",
    type=FOLDER,
    help="Folder of the report, the picture and the runs.  [default: runs/recommend-NAME-KEY]",
)
@click.option("--force", is_flag=True, help="Begin anew where the folder holds an answer.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON, not as a table.")
@click.pass_context
def recommend(ctx: click.Context, /, **options: Any) -> None:
    """Which batch size for my model, and which learning rate goes with it?

    A few timed steps give an estimate of the time. Learning rates are tried until the best lies
    between others; a run at it is tracked with the gradient noise scale, and from that follow the
    batch sizes for the fewest examples, for the fewest steps, and between, each with an interval.

    What is finished is kept: the same command goes on after a kill, and shows a finished answer at
    once. A checkpoint or a run is measured as it is, and nothing is trained.
    """
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    started = time.monotonic()
    given = {
        name for name in options if ctx.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    options["device"] = resolve_device(options["device"])
    target, problem = options["target"], options["problem"]
    if target is not None and not Path(target).exists() and ":" in target:
        if problem is not None:
            raise SettingError(f"{target} and --problem {problem}: give the problem once")
        target, problem = None, target
    if target is None:
        if others := [flag(ctx, name) for name in ("schedule", "multiple_of") if name in given]:
            raise SettingError(
                f"{', '.join(others)} without a run: give the folder of one that was tracked"
            )
        _train(ctx, options, given, problem, console, started)
        return
    if others := [flag(ctx, name) for name in (*OF_PROBLEM, *OF_TRAINING) if name in given]:
        raise SettingError(
            f"{target} is measured as it is, and nothing is trained: leave out {', '.join(others)}"
        )
    _measure(Path(target), options, started)


def _train(
    ctx: click.Context,
    options: dict[str, Any],
    given: set[str],
    problem: str | None,
    console: Console,
    started: float,
) -> None:
    """The answer for a problem, by runs of it."""
    from noisescale.cli.printing.recommend import print_advice
    from noisescale.problems.factory import factory_config
    from noisescale.studies.jobs.options import StudyOptions
    from noisescale.studies.recommend.run import run_recommend

    notes: tuple[str, ...] = ()
    chosen: ProblemConfig | FactoryConfig
    if problem is not None:
        if others := [flag(ctx, name) for name in OF_PROBLEM if name in given]:
            raise SettingError(f"{problem} says what is trained: leave out {', '.join(others)}")
        chosen = factory_config(problem)
    else:
        chosen_data, notes = choose_dataset(options, console)
        options |= chosen_data
        chosen = fill(ProblemConfig, options)
    names = (*OPTIMIZER, "seed")
    config = RecommendConfig(
        problem=chosen,
        training=fill(TrainConfig, {name: options[name] for name in names}),
        **{name: options[name] for name in ("batch_size", "learning_rate", "epochs", "minutes")},
    )
    out = options["out"] or Path("runs") / _name(config)
    study_options = StudyOptions(
        device=options["device"], data_dir=options["data_dir"], console=console, notes=notes
    )
    result = run_recommend(
        config,
        out,
        options=study_options,
        force=options["force"],
        spent=time.monotonic() - started,
    )
    if options["as_json"]:
        click.echo(json.dumps(result.summary, indent=2, allow_nan=False))
    else:
        print_advice(result.advice, result.notes)
    click.echo(out, err=options["as_json"])


def _name(config: RecommendConfig) -> str:
    """A default folder name, by what is asked, so that the same command goes on in it."""
    return f"recommend-{problem_name(config.problem)}-{digest(config.identity())}"


def _measure(path: Path, options: dict[str, Any], started: float) -> None:
    """The answer of a run that was tracked or, of other weights, by the noise at them."""
    from noisescale.cli.checkpoints import load_all, with_problems
    from noisescale.cli.printing.recommend import print_advice, print_schedule, schedule_record
    from noisescale.problems.factory import factory_config
    from noisescale.statistics.estimate import jsonable
    from noisescale.studies.recommend.checkpoint import advise_on_run, advise_on_weights
    from noisescale.studies.recommend.config import Budget

    loaded = load_all((path,), device=options["device"], problem=options["problem"])[-1]
    checkpoint = loaded.checkpoint
    training = None if checkpoint is None else checkpoint.training
    planned = schedule_record([loaded], options["schedule"], options["multiple_of"])
    notes: tuple[str, ...] = ()
    found = None
    if training is not None and _is_end(path, loaded):
        try:
            found = advise_on_run(Path(loaded.run), training, in_use=options["batch_size"])
        except MeasurementError as error:
            notes = (f"no answer by the noise along the run: {error}",)
    measurements: Any
    if found is not None:
        advice, recommendation = found
        measurements, notes = recommendation.to_dict(), recommendation.warnings
    else:
        budget = Budget(60 * options["minutes"], time.monotonic)
        budget.add(time.monotonic() - started)
        where = {name: options[name] for name in ("problem", "data_dir", "device")}
        ((_, problem),) = with_problems([loaded], **where)
        if (own := options["problem"]) is not None:
            problem = replace(problem, config=factory_config(own))
        preconditioner, said = loaded.own_preconditioner(problem.model)
        notes = (*notes, *filter(None, [said]))
        advice, noise = advise_on_weights(
            problem,
            preconditioner=preconditioner,
            name=loaded.title,
            # of a schedule the rate that it came from: that in force may be next to none
            training=training,
            in_use=options["batch_size"],
            budget=budget,
            seed=options["seed"],
        )
        measurements, notes = noise.to_dict(), (*notes, *noise.notes)
    if options["as_json"]:
        record = {
            "recommendation": jsonable(advice.sizes),
            "reason": advice.reason,
            "measurements": measurements,
            "advice": advice.to_dict(),
            "notes": list(notes),
            **({} if planned is None else {"schedule": planned}),
        }
        click.echo(json.dumps(record, indent=2, allow_nan=False))
    else:
        print_advice(advice, notes)
        print_schedule(planned)


def _is_end(path: Path, loaded: Loaded) -> bool:
    """Whether the run is asked for, by its folder or newest checkpoint, not a point along it."""
    return path.is_dir() or path.parent == Path(loaded.run)
