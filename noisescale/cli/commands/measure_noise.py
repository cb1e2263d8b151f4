"""noisescale measure-noise."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from noisescale.cli.help import Command
from noisescale.cli.options import (
    Project,
    batch_schedule_options,
    measurement_options,
    showing_what_is_found,
)
from noisescale.errors import SettingError
from noisescale.problems.config import resolve_device

if TYPE_CHECKING:
    from noisescale.cli.checkpoints import Loaded, Measured
    from noisescale.problems.problem import Problem
    from noisescale.statistics.gradient_noise import NoiseScale


@click.command(
    cls=Command,
    short_help="Gradient noise scale at one or several checkpoints.",
    epilog="""\b
Examples:
  noisescale measure-noise runs/NAME-KEY/checkpoint.pt
  noisescale measure-noise runs/NAME-KEY --plot noise.png   all its checkpoints, along training
  noisescale measure-noise runs/NAME-KEY --schedule megatron --multiple-of 8
  noisescale measure-noise checkpoint.pt --num-examples 5000 --per-layer
  noisescale measure-noise checkpoint.pt --anatomy --plot anatomy.png
  noisescale measure-noise checkpoint.pt --hessian --bs 32 --bs 1024
  noisescale measure-noise checkpoint.pt --hessian --dry-run    what that will take
  noisescale measure-noise weights.safetensors --problem my_module:make_problem
  noisescale measure-noise --problem my_file.py:make_problem    the model as it is made
  torchrun --nproc-per-node 4 -m noisescale measure-noise checkpoint.pt
""",
)
@click.option(
    "--population",
    type=click.Choice(["dataset", "distribution"]),
    help="Noise about the mean gradient of the split, or of fresh examples.  "
    "[default: dataset for train, else distribution]",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "hooks", "compiled", "vmap", "loop"]),
    default="auto",
    show_default=True,
    help="How per-example gradients are computed; the result does not depend on it.",
)
@click.option(
    "--hessian", is_flag=True, help="B_noise = tr(HΣ)/GᵀHG and the learning rates it predicts."
)
@click.option(
    "--num-probes",
    type=click.IntRange(min=2),
    default=32,
    show_default=True,
    help="Noise probes for --hessian, a Hessian product each at most.",
)
@click.option(
    "--hessian-examples",
    type=click.IntRange(min=2),
    metavar="N",
    help="Examples that H is taken on.  [default: 4096, at most half of the split]",
)
@click.option(
    "--bs",
    "batch_sizes",
    type=click.IntRange(min=1),
    multiple=True,
    metavar="B",
    help="With --hessian, the best learning rate at this batch size; repeatable.  "
    "[default: the run's own]",
)
@click.option(
    "--augmentations",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="K",
    help="Of a Dataset whose items change from read to read, K draws of each.",
)
@click.option(
    "--preconditioner",
    metavar="auto|none|FILE",
    default="auto",
    show_default=True,
    help="B^P_simple under an optimizer's state in a FILE of torch.save. auto: of the checkpoint's "
    "own Adam, AdamW or RMSprop, or of optimizer.pt beside the weights.",
)
@click.option("--per-layer", is_flag=True, help="Every parameter tensor's share.")
@click.option("--per-class", is_flag=True, help="Every class by itself, and the noisiest examples.")
@click.option(
    "--sign",
    is_flag=True,
    help="B_ℓ1 = ‖σ‖₁²/‖G‖₁² of sign descent as well, in a further pass.",
)
@click.option(
    "--anatomy",
    is_flag=True,
    help="Who carries tr Σ: the noisiest examples, classes, layers, the misclassified, principal "
    "components; and what importance sampling would leave of it.",
)
@click.option(
    "--unit",
    type=click.Choice(["examples", "tokens"]),
    default="examples",
    show_default=True,
    help="Of the noise scales in the tables; JSON has examples, and units_per_example.",
)
@measurement_options
@batch_schedule_options
def measure_noise(
    checkpoints: tuple[Path, ...],
    problem: str | None,
    device: str,
    data_dir: Path | None,
    dry_run: bool,
    as_json: bool,
    plot: Path | None,
    seed: int,
    batch_sizes: tuple[int, ...],
    unit: str,
    preconditioner: str,
    schedule: Project | None,
    multiple_of: int | None,
    **options: Any,
) -> None:
    """The gradient noise scale B_simple = tr Σ/|G|² at checkpoints, or of all in a run folder.

    From per-example gradients, with standard errors and 95 % intervals, for about three times the
    price of one gradient over the same examples. What a subset cannot resolve is called so, with a
    lower bound. Several checkpoints make a table along training; checkpoints of `noisescale train`
    need nothing else. Without any, --problem's model is measured as it is made. Where the run was
    tracked (`noisescale train --measure-noise-every log`), batch sizes are recommended for another
    like it.
    """
    import torch

    from noisescale import NoiseOptions, measure_noise
    from noisescale.cli.checkpoints import load_all, measure_all, print_cost
    from noisescale.cli.images import Image, noisiest_images
    from noisescale.cli.printing.noise import noise_reports, print_noise
    from noisescale.cli.printing.recommend import print_schedule, schedule_record
    from noisescale.measure.distributed import process_group, rank_and_size
    from noisescale.studies.cost import Cost, noise_cost

    dtype = options.pop("dtype")
    chosen = NoiseOptions(**options, dtype=dtype and getattr(torch, dtype))

    def measure(problem: Problem, report: Callable[[str], None], loaded: Loaded) -> NoiseScale:
        if unit == "tokens" and problem.units is None:
            raise SettingError(
                "--unit tokens: the problem does not say how many tokens an example has; give it "
                "as Problem(units=…), or leave --unit out"
            )
        given: Any = None if preconditioner == "none" else preconditioner
        note: str | None = None
        if preconditioner == "auto":
            given, note = loaded.own_preconditioner(problem.model)
        # one seed: the same examples for every checkpoint
        noise = measure_noise(
            problem, options=chosen, preconditioner=given, seed=seed, report=report
        )
        if plot is not None and noise.anatomy is not None:
            shown[:] = noisiest_images(problem, noise)
        return noise if note is None else replace(noise, notes=(*noise.notes, note))

    def estimate(problem: Problem, loaded: Loaded) -> Cost:
        own = None
        if preconditioner == "auto":
            own, _ = loaded.own_preconditioner(problem.model)
        is_plain = preconditioner == "none" or (preconditioner == "auto" and own is None)
        return noise_cost(problem, options=chosen, geometries=1 if is_plain else 2, seed=seed)

    shown: list[Image] = []  # of the last checkpoint measured
    is_first = True
    planned: dict[str, Any] | None = None

    def show(measured: list[Measured[NoiseScale]]) -> None:
        if not is_first:  # of several processes one speaks
            return
        reports = noise_reports(measured, batch_sizes)
        entries = [report.to_dict() for report in reports]
        if planned is not None:
            entries[-1]["schedule"] = planned
        if as_json:
            click.echo(json.dumps(entries, indent=2, allow_nan=False))
        else:
            print_noise(reports, in_tokens=unit == "tokens")
            print_schedule(planned)
        if plot is not None:
            from noisescale.plots.noise import noise_figure
            from noisescale.plots.style import image
            from noisescale.training.records.folder import write_atomically

            write_atomically(plot, image(noise_figure(entries, shown), plot.suffix[1:]))
            click.echo(plot, err=as_json)

    with (
        showing_what_is_found(show),
        process_group(device=resolve_device(device)) as own_device,
    ):
        loaded = load_all(checkpoints, device=own_device, problem=problem)
        is_first = rank_and_size()[0] == 0
        where: dict[str, Any] = {"problem": problem, "data_dir": data_dir, "device": own_device}
        if dry_run:
            print_cost(loaded, estimate, as_json=as_json, quiet=not is_first, **where)
            return
        planned = schedule_record(loaded, schedule, multiple_of)
        measured = measure_all(loaded, measure, quiet=not is_first, **where)
    show(measured)
