"""noisescale sharpness."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from noisescale.cli.help import Command
from noisescale.cli.options import measurement_options, showing_what_is_found
from noisescale.errors import SettingError
from noisescale.problems.config import resolve_device

if TYPE_CHECKING:
    from noisescale.cli.checkpoints import Loaded, Measured
    from noisescale.problems.problem import Problem


@click.command(
    cls=Command,
    short_help="Curvature of the loss at one or several checkpoints.",
    epilog="""\b
Examples:
  noisescale sharpness runs/NAME-KEY/checkpoint.pt
  noisescale sharpness runs/NAME-KEY                   all its checkpoints, along training
  noisescale sharpness checkpoint.pt --num-examples 5000 --bottom 1 --trace
  noisescale sharpness checkpoint.pt --batch-sharpness 32
  noisescale sharpness checkpoint.pt --bottom 1 --density --dry-run    what that will take
  noisescale sharpness checkpoint.pt --density --phi --plot sharpness.png
  noisescale sharpness checkpoint.pt --filter-normalised --phi-iterations 50
  noisescale sharpness --problem my_file.py:make_problem    the model as it is made
  noisescale sharpness weights.pt --problem my_file.py:make_problem --lr 0.1    against 2/η
  noisescale sharpness weights.pt --problem my_file.py:make_problem
      --preconditioner optimizer.pt                         in its geometry
""",
)
@click.option(
    "--top", type=click.IntRange(min=0), default=1, show_default=True, help="Largest eigenvalues."
)
@click.option(
    "--bottom",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Smallest (algebraically).",
)
@click.option("--trace", is_flag=True, help="Trace and squared Frobenius norm, with errors.")
@click.option("--density", is_flag=True, help="Spectral density, by stochastic Lanczos quadrature.")
@click.option("--phi", is_flag=True, help="Keskar's φ, full and 100-dim. space, ε = 1e-3 and 5e-4.")
@click.option(
    "--filter-normalised",
    is_flag=True,
    help="φ in a box by the norms of filters, which rescaling ReLU layers does not change.",
)
@click.option(
    "--phi-iterations",
    type=click.IntRange(min=1),
    metavar="N",
    default=10,
    show_default=True,
    help="Of the search for φ; beyond 10, which often has not converged, φ after 10 is told too.",
)
@click.option(
    "--batch-sharpness",
    "batch_size",
    type=click.IntRange(min=1),
    metavar="B",
    help="Batch sharpness and gradient-noise interaction at batch size B.",
)
@click.option(
    "--lr",
    "learning_rate",
    type=float,
    metavar="RATE",
    help="Hold λ_max against 2/η of this rate of plain SGD, for weights that do not say theirs.",
)
@click.option(
    "--preconditioner",
    metavar="auto|none|FILE",
    default="auto",
    show_default=True,
    help="λ_max(P^½HP^½) too, under an optimizer's state in a FILE of torch.save. auto: of the "
    "checkpoint's own Adam, AdamW or RMSprop, or of optimizer.pt beside the weights.",
)
@click.option(
    "--critical",
    is_flag=True,
    help="2/η_c: from which learning rate on the optimizer's next step raises the loss; a few "
    "forward passes.",
)
@click.option("--ggn", is_flag=True, help="The Gauss-Newton matrix instead of the Hessian.")
@click.option(
    "--method",
    type=click.Choice(["lanczos", "power"]),
    default="lanczos",
    show_default=True,
    help="For eigenvalues.",
)
@click.option(
    "--rtol",
    type=float,
    default=1e-3,
    show_default=True,
    help="Residual to reach, in units of the eigenvalue.",
)
@click.option(
    "--max-matvecs",
    type=click.IntRange(min=1),
    default=200,
    show_default=True,
    help="Products for each end, at most.",
)
@measurement_options
def sharpness(
    checkpoints: tuple[Path, ...],
    problem: str | None,
    device: str,
    data_dir: Path | None,
    dry_run: bool,
    as_json: bool,
    plot: Path | None,
    learning_rate: float | None,
    preconditioner: str,
    **options: Any,
) -> None:
    """Curvature of the loss at checkpoints of `noisescale train`, or of all in a run folder.

    Without any, of --problem's model as it is made.

    With --plot: the eigenvalues of one checkpoint, or sharpness along training of several; the
    density and φ, where they are asked for.

    Eigenvalues come with their residual, the sampling error of a subset, and the limit of stability
    2/η of the rate they were trained with; under Adam, AdamW and RMSprop also the largest of
    P^½HP^½, beside the limit of that optimizer. Several checkpoints make a table along training,
    each search started from the eigenvectors of the one before.
    """
    import torch

    from noisescale.cli.checkpoints import load_all, measure_all, print_cost
    from noisescale.cli.printing.sharpness import SharpnessReport, print_sharpness
    from noisescale.measure.sharpness import Sharpness, SharpnessOptions, measure_sharpness
    from noisescale.problems.models import has_batch_norm
    from noisescale.studies.cost import Cost, sharpness_cost
    from noisescale.training.config import TrainConfig

    searched = ("phi", "filter_normalised")
    wanted = ("top", "bottom", "trace", "density", *searched, "batch_size", "critical")
    if not any(options[name] for name in wanted):
        raise SettingError(
            "nothing to measure: give --top, --bottom, --trace, --density, --phi or another"
        )
    if options["phi_iterations"] != SharpnessOptions.phi_iterations and not any(
        options[name] for name in searched
    ):
        raise SettingError(
            "--phi-iterations without a search: give --phi or --filter-normalised too"
        )
    dtype = options.pop("dtype")
    chosen = SharpnessOptions(**options, dtype=dtype and getattr(torch, dtype))
    device = resolve_device(device)
    if learning_rate is not None:
        TrainConfig(learning_rate=learning_rate)  # refuses what is no rate
    loaded = load_all(checkpoints, device=device, problem=problem)
    ours = next((each for each in loaded if each.checkpoint is not None), None)
    if learning_rate is not None and ours is not None:
        raise SettingError(
            f"--lr {learning_rate:g}: {ours.path} says the learning rate it was trained with; "
            "leave --lr out"
        )
    drawn = ("top", "bottom", "density", *searched, "batch_size")
    if plot is not None and len(loaded) == 1 and not any(options[name] for name in drawn):
        raise SettingError(
            "--plot: one checkpoint's trace alone makes no picture; add --top, --bottom, "
            "--density, --phi, --filter-normalised or --batch-sharpness"
        )
    previous: tuple[Problem, Sharpness] | None = None

    def measure(problem: Problem, report: Callable[[str], None], loaded: Loaded) -> Sharpness:
        nonlocal previous
        start = previous[1] if previous is not None and previous[0] is problem else None
        given: Any = None if preconditioner == "none" else preconditioner
        note: str | None = None
        if preconditioner == "auto":
            given, note = loaded.own_optimizer(problem.model)
        own: Mapping[str, Any] | None = None
        # what is given goes before the checkpoint's own
        if chosen.critical and loaded.checkpoint and preconditioner in ("auto", "none"):
            own = loaded.optimizer_state(problem.model)
        sharpness = measure_sharpness(
            problem,
            options=chosen,
            preconditioner=given,
            update=own,
            start=start,
            report=report,
        )
        if note is not None:
            sharpness = replace(sharpness, notes=(*sharpness.notes, note))
        previous = problem, sharpness
        return sharpness

    def show(measured: list[Measured[Sharpness]]) -> None:
        reports = [
            SharpnessReport(
                measured=one,
                in_batches=one.problem is not None and has_batch_norm(one.problem.model),
                learning_rate=learning_rate,
            )
            for one in measured
        ]
        entries = [report.to_dict() for report in reports]
        if as_json:
            click.echo(json.dumps(entries, indent=2, allow_nan=False))
        else:
            print_sharpness(reports)
        if plot is not None:
            from noisescale.plots.sharpness import measurements_figure
            from noisescale.plots.style import image
            from noisescale.training.records.folder import write_atomically

            write_atomically(plot, image(measurements_figure(entries), plot.suffix[1:]))
            click.echo(plot, err=as_json)

    def estimate(problem: Problem, loaded: Loaded) -> Cost:
        own = None
        if preconditioner == "auto":
            own, _ = loaded.own_optimizer(problem.model)
        is_plain = preconditioner == "none" or (preconditioner == "auto" and own is None)
        return sharpness_cost(problem, options=chosen, geometries=1 if is_plain else 2)

    where: dict[str, Any] = {"problem": problem, "data_dir": data_dir, "device": device}
    if dry_run:
        print_cost(loaded, estimate, as_json=as_json, **where)
        return
    with showing_what_is_found(show):
        measured = measure_all(loaded, measure, **where)
    show(measured)
