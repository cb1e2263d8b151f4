"""Options that several commands share: each mirrors a field of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import click

from noisescale.errors import Interrupted, SettingError
from noisescale.problems.config import (
    TEXTS,
    Amp,
    DatasetName,
    LossName,
    ModelName,
    Norm,
    PixelScale,
    ProblemConfig,
)
from noisescale.training.config import (
    AdaptiveConfig,
    BatchRule,
    LrScaling,
    LrSchedule,
    OptimizerName,
    Sampling,
    TrainConfig,
)

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from rich.console import Console

Command = TypeVar("Command", bound=Callable[..., Any])
Config = TypeVar("Config", ProblemConfig, TrainConfig)
# as statistics.critical_batch.advice has it, which loads NumPy
Project = Literal["megatron", "olmo", "levanter", "lightning"]
FOLDER = click.Path(path_type=Path, file_okay=False)
MOST_PROCESSES = 1024  # local ones, each with a torch of its own
DTYPES = ("float32", "float64")
PICTURES = (".png", ".pdf", ".svg")


class BatchSize(click.ParamType[int | str]):
    """A number of examples, "full" or "adaptive"."""

    name = "N|full|adaptive"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        try:
            words = get_args(BatchRule)
            return TrainConfig(batch_size=value if value in words else int(value)).batch_size
        except ValueError:
            self.fail(f"{value!r}: give a whole number of 1 or more, full or adaptive", param, ctx)


class Steps(click.ParamType[int | str]):
    """A number of steps between two measurements, or "log"."""

    name = "STEPS|log"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value == "log":
            return "log"
        try:
            steps = int(value)
        except ValueError:
            steps = 0
        if steps < 1:
            self.fail(f"{value!r}: give a number of steps, 1 or more, or log", param, ctx)
        return steps


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


def training_options(command: Command) -> Command:
    """The fields of TrainConfig except the batch size."""
    return together(
        click.option(
            "--lr",
            "learning_rate",
            type=float,
            default=TrainConfig.learning_rate,
            show_default=True,
            help="Learning rate, on the mean loss of the batch.",
        ),
        click.option(
            "--epochs",
            type=int,
            default=TrainConfig.epochs,
            show_default=True,
            help="Passes over the training set.",
        ),
        click.option(
            "--max-steps", type=int, help="Stop after this many updates, if that comes first."
        ),
        amp_option,
        optimizer_options,
        schedule_options,
        sampling_options,
        click.option(
            "--seed",
            type=int,
            default=TrainConfig.seed,
            show_default=True,
            help="Of the initial parameters and the order of the examples.",
        ),
    )(command)


def optimizer_options(command: Command) -> Command:
    """The fields of TrainConfig that say how a gradient becomes an update, but for the rate."""
    return together(
        click.option(
            "--optimizer",
            type=click.Choice(get_args(OptimizerName)),
            default=TrainConfig.optimizer,
            show_default=True,
            help="muon (torch 2.9 or later): of linear layers but the last; adamw of all else.",
        ),
        click.option(
            "--momentum",
            type=float,
            default=TrainConfig.momentum,
            show_default=True,
            help="Heavy ball, of sgd.",
        ),
        click.option("--nesterov", is_flag=True, help="That momentum as Nesterov's."),
        click.option(
            "--weight-decay",
            type=float,
            default=TrainConfig.weight_decay,
            show_default=True,
            help="Beside the gradient for adamw and muon, added to it for the others.",
        ),
        click.option(
            "--beta1",
            type=float,
            help="Decay of the mean gradient: adam, adamw 0.9; muon's momentum, 0.95.",
        ),
        click.option(
            "--beta2",
            type=float,
            help="Decay of the mean square: adam, adamw, muon's adamw 0.999; rmsprop 0.99.",
        ),
        click.option(
            "--epsilon", type=float, help="Added to the root of the mean square.  [default: 1e-8]"
        ),
    )(command)


def schedule_options(command: Command) -> Command:
    """The fields of TrainConfig that say how the learning rate goes along a run."""
    return together(
        click.option(
            "--warmup",
            type=float,
            metavar="STEPS|SHARE",
            default=TrainConfig.warmup,
            show_default=True,
            help="Updates over which the rate rises to --lr; below 1, their share of all.",
        ),
        click.option(
            "--lr-schedule",
            type=click.Choice(get_args(LrSchedule)),
            default=TrainConfig.lr_schedule,
            show_default=True,
            help="Then constant; down to zero as a cosine; or constant, then down in a line (wsd).",
        ),
        click.option(
            "--decay-share",
            type=float,
            metavar="SHARE",
            default=TrainConfig.decay_share,
            show_default=True,
            help="--lr-schedule wsd: of all updates, the last ones, in which it falls.",
        ),
    )(command)


def sampling_options(command: Command) -> Command:
    """The fields of TrainConfig that say how examples are drawn."""
    return together(
        click.option(
            "--sampling",
            type=click.Choice(get_args(Sampling)),
            default=TrainConfig.sampling,
            show_default=True,
            help="shuffle: each example once an epoch; importance: those of larger gradients more "
            "often, and weighted by less.",
        ),
        click.option(
            "--sampling-floor",
            type=float,
            metavar="SHARE",
            default=TrainConfig.sampling_floor,
            show_default=True,
            help="--sampling importance: the least chance of an example, as a share of 1/N.",
        ),
    )(command)


def batch_schedule_options(command: Command) -> Command:
    """A batch-size schedule of a tracked run, for another project to read."""
    return together(
        click.option(
            "--schedule",
            type=click.Choice(get_args(Project)),
            help="Of a tracked run: also print a batch size that grows along another like it, as "
            "Megatron-LM, OLMo-core, Levanter or Lightning read it.",
        ),
        click.option(
            "--multiple-of",
            type=click.IntRange(min=1),
            metavar="N",
            help="--schedule: a number that divides its batch sizes, such as the examples that all "
            "devices take at once.  [default: 1]",
        ),
    )(command)


def adaptive_options(command: Command) -> Command:
    """The fields of AdaptiveConfig."""
    return together(
        click.option(
            "--exchange-rate",
            type=float,
            metavar="EXAMPLES",
            default=AdaptiveConfig.exchange_rate,
            show_default=True,
            help="--bs adaptive: r of B = √(r·B_simple), the examples you would spend to save a "
            "step.",
        ),
        click.option(
            "--lr-scaling",
            type=click.Choice(get_args(LrScaling)),
            default=AdaptiveConfig.lr_scaling,
            show_default=True,
            help="--bs adaptive: how the rate follows when B changes; noise: as "
            "1/(1 + B_simple/B).",
        ),
        click.option(
            "--bs-initial",
            "initial_batch_size",
            type=int,
            default=AdaptiveConfig.initial_batch_size,
            show_default=True,
            help="--bs adaptive: where it starts, and what --lr is for.",
        ),
        click.option(
            "--bs-min",
            "min_batch_size",
            type=int,
            default=AdaptiveConfig.min_batch_size,
            show_default=True,
            help="--bs adaptive: lower bound.",
        ),
        click.option(
            "--bs-max",
            "max_batch_size",
            type=int,
            help="--bs adaptive: upper bound.  [default: 4096, or all examples]",
        ),
        click.option(
            "--hysteresis",
            type=float,
            metavar="FACTOR",
            default=AdaptiveConfig.hysteresis,
            show_default=True,
            help="--bs adaptive: change once wrong by this factor.",
        ),
        click.option(
            "--noise-memory",
            type=int,
            metavar="EXAMPLES",
            default=AdaptiveConfig.noise_memory,
            show_default=True,
            help="--bs adaptive: after this many an update's weight in B_simple is down to 1/e.",
        ),
    )(command)


class FileOf(click.ParamType[Path]):
    """A file to be written, whose name ends in one of these suffixes.

    Args:
        suffixes: with their dots.
    """

    name = "FILE"

    def __init__(self, suffixes: tuple[str, ...]) -> None:
        self.suffixes = suffixes

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if path.suffix not in self.suffixes or path.is_dir():
            ends = ", ".join(self.suffixes)
            self.fail(f"{value}: give a file name that ends in {ends}", param, ctx)
        return path


def amp_option(command: Command) -> Command:
    """Automatic mixed precision."""
    return click.option(
        "--amp",
        type=click.Choice(get_args(Amp)),
        help="The model under torch.autocast: matrix products in bfloat16, all else float32.",
    )(command)


def measurement_options(command: Command) -> Command:
    """What to measure on which examples of which problem, and how to print it."""
    return together(
        click.argument(
            "checkpoints",
            nargs=-1,
            metavar="[CHECKPOINT...]",
            type=click.Path(path_type=Path),
        ),
        click.option(
            "--num-examples",
            type=click.IntRange(min=1),
            metavar="N",
            help="A random subset of the split, drawn under --seed; errors are given.  "
            "[default: all]",
        ),
        click.option(
            "--split", default="train", show_default=True, help="train, validation or test."
        ),
        click.option(
            "--dtype",
            type=click.Choice(DTYPES),
            help="Of all computing.  [default: the parameters' own]",
        ),
        amp_option,
        click.option(
            "--param",
            "param_filter",
            multiple=True,
            metavar="GLOB",
            callback=lambda context, option, globs: globs or None,
            help='Of these parameters alone, as "head.*", the others constant; repeatable.',
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            show_default=True,
            help="Of the subset and the random probes.",
        ),
        click.option(
            "--problem",
            metavar="FILE.py:FACTORY",
            help="A function of your own (or MODULE:FACTORY) that returns a noisescale.Problem; "
            "then any state dict will do, or a folder as save_pretrained leaves it, or no "
            "CHECKPOINT for the model as it is made (under seed 0).",
        ),
        machine_options,
        click.option(
            "--dry-run",
            is_flag=True,
            help="Only say how many seconds and how much memory it will take, about, by the first "
            "chunk of examples.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON, not a table."),
        click.option(
            "--plot", type=FileOf(PICTURES), help="Draw what was measured; png, pdf or svg."
        ),
    )(command)


def machine_options(command: Command) -> Command:
    """Where to compute and where the data lie."""
    return together(
        click.option(
            "--device",
            type=click.Choice(["auto", "cpu", "cuda"]),
            default="auto",
            show_default=True,
            help="auto: a GPU where there is one.",
        ),
        click.option(
            "--data-dir",
            type=FOLDER,
            help="Where data sets lie.  [default: $NOISESCALE_DATA, else the user cache]",
        ),
    )(command)


def executor_options(*names: str, help: str) -> Callable[[Command], Command]:
    """--executor with these choices, --processes and --scheduler."""
    return together(
        click.option(
            "--executor",
            type=click.Choice(list(names)),
            default=names[0],
            show_default=True,
            help=help,
        ),
        click.option(
            "--processes",
            type=click.IntRange(1, MOST_PROCESSES),
            help="Local processes.  [default: one a core]",
        ),
        click.option(
            "--scheduler", metavar="ADDRESS", help="Of the Dask cluster, such as tcp://HOST:8786."
        ),
    )


def check_executor(options: dict[str, Any]) -> None:
    """SettingError for a scheduler without Dask, or Dask without one."""
    if options["scheduler"] is not None and options["executor"] != "dask":
        raise SettingError("--scheduler goes with --executor dask: give that too")
    if options["executor"] == "dask" and options["scheduler"] is None:
        raise SettingError(
            "--executor dask takes the address of its scheduler: give --scheduler too"
        )


@contextmanager
def open_executor(options: dict[str, Any], console: Console) -> Iterator[Executor | None]:
    """The executor that the options mean, shut down at the end; None: processes, one a core."""
    executor = _executor(options, console)
    try:
        yield executor
    finally:
        if executor is not None:
            executor.shutdown(wait=False, cancel_futures=True)


def _executor(options: dict[str, Any], console: Console) -> Executor | None:
    kind, processes = options["executor"], options["processes"]
    if kind == "dask":
        from noisescale.studies.jobs.dask import DaskExecutor
        from noisescale.training.console import NOTE_STYLE

        cluster = DaskExecutor(options["scheduler"])
        if not cluster.has_workers:
            console.print(
                f"no workers have joined {options['scheduler']} yet: waiting for them",
                style=NOTE_STYLE,
            )
        return cluster
    if kind == "replicas" or (kind == "auto" and options["device"] == "cuda"):
        from noisescale.studies.stability_map.replicas import ReplicaExecutor

        return ReplicaExecutor()
    if processes is None:
        return None
    from noisescale.studies.jobs.local import LocalProcesses

    return LocalProcesses(processes)


def fill(config: type[Config], options: dict[str, Any]) -> Config:
    """The configuration whose stored fields are options of the same names."""
    return config.from_dict(
        {name: options[name] for name in config.stored_defaults() if name in options}
    )


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


@contextmanager
def showing_what_is_found(show: Callable[[Any], None]) -> Iterator[None]:
    """Shows what an interruption within has found so far, before it goes on its way."""
    try:
        yield
    except Interrupted as stop:
        if stop.found is not None:
            show(stop.found)
        raise


def flag(ctx: click.Context, name: str) -> str:
    """How the option of this name is spelt on the command line."""
    return next(option.opts[0] for option in ctx.command.params if option.name == name)


def together(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """One decorator that adds several options, in their order."""

    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate
