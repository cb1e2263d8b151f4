"""From raw pixels: does the curvature come down below 2/η before the noise of small batches kills?

784–256–256–10 on raw MNIST, the network of the map at raw pixels, whose λ_max at initialisation is
some 22,000: B = 1, 32 and 1,024 at 20 rates from below 2/λ_max to above every edge, three seeds.
λ_max of the loss of 200 fixed images before the first update and after each of the first 50; then
the run goes on to 300 updates, which show how it ends. Beside it the study's own network, 1,024
units wide, at a few rates around its edges: stars on the map.

Primary statistic: of the runs that begin above 2/η, the share in which λ_max has come down below
2/η in most of the last ten of the 50 updates, the loss being finite throughout and lower than at
the start ("tamed"), and the share that train in the end, by B, over the same rates: those between
2/λ_max at initialisation and the largest rate that trains at B = 1,024. Shares of each seed's runs,
Student's t over the seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.batches.scores import identity
from experiments.runs import Unit, unit_experiment
from noisescale import ProblemConfig, TrainConfig, hessian_matvec, top_eigenpairs
from noisescale.errors import MeasurementError
from noisescale.problems.sampling import independent_seed
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.studies.stability_map.cell_run import Ends, cell_summary, look_due
from noisescale.training.records.folder import nullable
from noisescale.training.records.names import run_name
from noisescale.training.trainer import Training

PROBLEM = ProblemConfig(dataset="mnist", pixel_scale="raw", width=256)
STUDY = replace(PROBLEM, width=None)  # 1,024 units, as `--preset three-cases`
RATES = tuple(float(f"{rate:.3g}") for rate in np.geomspace(2e-5, 1e-2, 20))
WATCHED = 50  # updates after each of which λ_max is measured
UPDATES = 300  # of a run: it has died, or trains, by then
LOOK = 25  # updates between two looks at the loss from there on
MEASURED_ON = 200  # images
RTOL = 0.05  # of λ_max, whose changes here are by factors
MOST_PRODUCTS = 40
# the study's network: a third of an epoch at B = 1, an epoch at the others
STARS: dict[int, tuple[int, tuple[float, ...]]] = {
    1024: (59, (1e-3, 2e-3, 3e-3, 4e-3, 6e-3)),
    32: (1875, (1e-3, 1.5e-3, 2e-3, 3e-3, 4e-3)),
    1: (20_000, (1e-4, 2e-4, 3.5e-4, 5e-4, 7e-4, 1e-3)),
}
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 1, "rates": RATES[4::7], "stars": ()},
    "full": {"seeds": 3, "rates": RATES, "stars": tuple(STARS)},
}


def watch(cell: Cell, training: Training, curve: LossCurve) -> dict[str, Any]:
    """λ_max after each of the first updates, and how the run ends."""
    rows: list[dict[str, Any]] = []
    start: Tensor | None = None  # the last eigenvector, from which the next search starts
    curve.look(0, training.model)
    start = _note(rows, training, curve, start)
    for step in training:
        if step <= WATCHED:
            curve.look(step, training.model)
            start = _note(rows, training, curve, start)
        elif step % LOOK == 0 or training.finished:
            curve.look(step, training.model)
    return {"part": "watched", "rows": rows, **_ending(cell, training, curve)}


def _note(
    rows: list[dict[str, Any]], training: Training, curve: LossCurve, start: Tensor | None
) -> Tensor | None:
    """Adds a row of the loss just looked at and of λ_max; gives its eigenvector."""
    step, loss = curve.points[-1]
    row: dict[str, Any] = {"step": step, **nullable({"loss": loss}), "sharpness": None}
    rows.append(row)
    if not math.isfinite(loss):
        return None
    problem = replace(training.problem, model=training.model)
    matvec = hessian_matvec(problem, examples=curve.examples.part(slice(MEASURED_ON)))
    try:
        pairs = top_eigenpairs(
            matvec,
            rtol=RTOL,
            max_matvecs=MOST_PRODUCTS,
            start=start,
            generator=torch.Generator().manual_seed(step),
        )
    except MeasurementError as error:  # products that overflow, or are rounding alone
        row["reason"] = str(error)
        return None
    row["sharpness"] = float(pairs.values[0])
    return pairs.vectors[0]


def star(cell: Cell, training: Training, curve: LossCurve) -> dict[str, Any]:
    """How a run of the study's network ends."""
    total = training.config.max_steps
    assert total is not None
    curve.look(0, training.model)
    for step in training:
        if look_due(step, total) or training.finished:
            curve.look(step, training.model)
    return {"part": "star", **_ending(cell, training, curve)}


def _ending(cell: Cell, training: Training, curve: LossCurve) -> dict[str, Any]:
    """What a cell of a map has, from which follows what the run is called."""
    where = identity(cell, training)
    return cell_summary(
        cell,
        training.problem,
        Ends(training.problem),
        curve,
        training.model,
        steps=where["steps"],
        epochs=where["epochs"],
        diverged_at_step=where["diverged_at_step"],
    )


def _training(batch_size: int, rate: float, seed: int, steps: int) -> TrainConfig:
    return TrainConfig(
        batch_size=batch_size,
        learning_rate=rate,
        epochs=10,
        max_steps=steps,
        seed=seed,
        order_seed=independent_seed("catapult", seed, batch_size),
    )


def units(scale: str, out: Path) -> Iterator[list[Unit]]:
    """The watched runs, then the stars."""
    settings = SCALES[scale]
    watched = [
        (PROBLEM, _training(batch_size, rate, seed, UPDATES), watch)
        for seed in range(settings["seeds"])
        for batch_size in (1, 32, 1024)
        for rate in settings["rates"]
    ]
    stars = [
        (STUDY, _training(batch_size, rate, seed, STARS[batch_size][0]), star)
        for seed in range(settings["seeds"])
        for batch_size in settings["stars"]
        for rate in STARS[batch_size][1]
    ]
    for part in (watched, stars):
        yield [
            Unit(
                folder=f"{course.__name__}/{run_name(problem, training)}",
                problem=problem,
                training=training,
                course=course,
            )
            for problem, training, course in part
        ]


catapult = unit_experiment(
    "catapult",
    units,
    scales={
        "quick": "one seed at three rates",
        "full": "three seeds at 20 rates, and the study's network at 16",
    },
    help="The curvature in the first updates from raw pixels.",
)
