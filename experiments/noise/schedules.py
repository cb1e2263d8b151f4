"""The critical batch size of a language model by a constant rate and by warm-up, stable, decay.

A character GPT of width 32 and depth 2 on tiny Shakespeare, AdamW: B = 2, 4, …, 128 sequences of 32
characters, six rates a factor of two apart about one in proportion to √B, three seeds, each batch
size with its own orders. A run warms up over 256 sequences and goes on at a constant rate to 32,768
sequences. Its loss on 2,000 training sequences is measured at D = 1,024, 2,048, …, 32,768; and from
its state at .8·D another run goes on whose rate falls in a straight line to zero over the last
fifth of D's updates. This is update for update the run of `--lr-schedule wsd` of that length.

Examples to a loss, of either schedule: log D between two lengths by the line through their losses,
along the lowest loss up to each. B_crit by the hyperbola and by the curve with a free exponent, as
of any front: at one rate for all seeds.

Primary statistic: B_crit of the decayed runs over B_crit at the constant rate, at each loss, each
from the seed's own runs, at that seed's best rate, mean of logs over seeds with Student's t, Holm
over losses. Beside it the error of either curve on batch sizes left out, under either schedule, and
the examples at the smallest batch sizes: under this one an optimum was found below which a batch
takes more examples (arXiv 2601.05034), which neither curve has.

The largest rate, eight times the middle one, was added after the runs at the other five: at some
batch sizes the best of these had been the largest.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.batches.scores import identity
from experiments.runs import Unit, unit_experiment
from noisescale import Checkpoint, ProblemConfig, TrainConfig
from noisescale.problems.sampling import independent_seed
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.trainer import Training

PROBLEM = ProblemConfig(dataset="shakespeare", model="gpt", width=32, depth=2, heads=2, context=32)
SIZES = tuple(2**power for power in range(1, 8))
LENGTHS = tuple(2**power for power in range(10, 16))  # in sequences
WARMUP = 256  # sequences
DECAY_SHARE = 0.2
RATE, AT = 4e-3, 16  # the middle one, at B = 16
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 1, "sizes": (32, 128), "lengths": (1024, 2048), "multiples": (1.0,)},
    "full": {"seeds": 3, "sizes": SIZES, "lengths": LENGTHS, "multiples": MULTIPLES},
}


def course(
    cell: Cell, training: Training, curve: LossCurve, *, lengths: tuple[int, ...]
) -> dict[str, Any]:
    """Trains at the constant rate, and from there to the end of each decay."""
    batch_size = training.batch_size
    ends = {math.ceil(length / batch_size): length for length in lengths}
    begins = {end - round(DECAY_SHARE * end): end for end in ends}
    rows: list[dict[str, Any]] = []
    decays: list[tuple[int, Checkpoint]] = []
    for step in training:
        if step in begins:
            decays.append((begins[step], training.checkpoint()))
        if step in ends:
            rows.append(_row("constant", training, curve, ends[step]))
    for end, start in decays:
        config = replace(training.config, max_steps=end, lr_schedule="wsd", decay_share=DECAY_SHARE)
        decayed = Training(training.problem, config)
        decayed.restore(replace(start, training=config))
        for _ in decayed:
            pass
        rows.append(_row("wsd", decayed, curve, ends[end]))
    return {**identity(cell, training), "rows": rows}


def _row(schedule: str, training: Training, curve: LossCurve, length: int) -> dict[str, Any]:
    loss = curve.look(training.step, training.model)
    return {
        "schedule": schedule,
        "length": length,
        "steps": training.step,
        "loss": loss if math.isfinite(loss) else None,
    }


def units(scale: str, out: Path) -> Iterator[list[Unit]]:
    """Every batch size and rate of a seed, then those of the next."""
    settings = SCALES[scale]
    last = max(settings["lengths"])
    yield [
        Unit(
            folder=f"bs{batch_size}-lr{rate:g}-seed{seed}",
            problem=PROBLEM,
            training=TrainConfig(
                batch_size=batch_size,
                learning_rate=rate,
                optimizer="adamw",
                weight_decay=0.01,
                warmup=WARMUP // batch_size,
                epochs=2,
                max_steps=math.ceil(last / batch_size),
                seed=seed,
                order_seed=independent_seed("schedules", seed, batch_size),
            ),
            course=partial(course, lengths=settings["lengths"]),
        )
        for seed in range(settings["seeds"])
        for batch_size in settings["sizes"]
        for multiple in settings["multiples"]
        for rate in (float(f"{multiple * RATE * math.sqrt(batch_size / AT):.3g}"),)
    ]


schedules = unit_experiment(
    "schedules",
    units,
    scales={
        "quick": "two batch sizes, two lengths, one seed",
        "full": "seven batch sizes, six rates, six lengths, three seeds",
    },
    help="The critical batch size by a constant rate and by warm-up, stable, decay.",
)
