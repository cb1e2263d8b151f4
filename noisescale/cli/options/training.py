"""Options that say how it is trained: each mirrors a field of TrainConfig."""

from __future__ import annotations

from typing import Any, TypeVar, get_args

import click

from noisescale.cli.options.forms import Command, together
from noisescale.problems.config import Amp, ProblemConfig
from noisescale.training.config import (
    AdaptiveConfig,
    LrScaling,
    LrSchedule,
    OptimizerName,
    Sampling,
    TrainConfig,
)

Config = TypeVar("Config", ProblemConfig, TrainConfig)


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


def amp_option(command: Command) -> Command:
    """Automatic mixed precision."""
    return click.option(
        "--amp",
        type=click.Choice(get_args(Amp)),
        help="The model under torch.autocast: matrix products in bfloat16, all else float32.",
    )(command)


def fill(config: type[Config], options: dict[str, Any]) -> Config:
    """The configuration whose stored fields are options of the same names."""
    return config.from_dict(
        {name: options[name] for name in config.stored_defaults() if name in options}
    )
