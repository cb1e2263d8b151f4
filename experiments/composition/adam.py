"""Which noise scale goes with the critical batch size of Adam?

McCandlish et al. 2018 found mixed results for Adam with the plain noise scale. Adam is descent in
other coordinates, P^(−½)θ with P = 1/(√v̂ + ε), where the noise scale is tr(PΣ)/GᵀPG and, with
curvature, tr(PHPΣ)/GᵀPHPG. 57,344 images of MNIST, 784–64–64–10, Adam at ε = 1e-8 and 1e-3: B_crit
by the command's search of rates at B = 2, 4, …, 4,096 for training losses 1, .6, .4, .25 and .16,
three seeds; the four noise scales along a run for each seed at the batch size nearest to B_crit of
the lowest loss, at its best rate, on 4,000 training images, H on 1,000.

Primary statistic: for each noise scale and ε the spread of log(B_crit/𝓑) over the losses, its
standard deviation s, where 𝓑 is averaged by progress up to each loss along a seed's run and B_crit
is that of the seed's own runs; a geometric mean of s over seeds. The scale with the smaller spread
follows B_crit better, up to a constant; the difference of log s from that of the plain B_simple is
paired by seed, with Student's t, Holm over the scales and both ε. Beside it the ratio B_crit/𝓑
itself.

Some 60 core minutes at full scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.runs import Unit, unit_experiment
from noisescale import CriticalBatchConfig, ProblemConfig, TrainConfig

PROBLEM = ProblemConfig(dataset="mnist", num_train=14 * 4096, width=64)
SCALES: dict[str, dict[str, Any]] = {
    "quick": {
        "sizes": (16, 64, 256, 1024),
        "goals": (1.0, 0.6, 0.4),
        "epsilons": (1e-8,),
        "seeds": 2,
        "noise_examples": 500,
    },
    "full": {
        "sizes": tuple(2**power for power in range(1, 13)),
        "goals": (1.0, 0.6, 0.4, 0.25, 0.16),
        "epsilons": (1e-8, 1e-3),
        "seeds": 3,
        "noise_examples": 4000,
    },
}


def units(scale: str, out: Path) -> Iterator[list[Unit]]:
    """No runs of its own."""
    return iter(())


def fronts(scale: str) -> dict[str, CriticalBatchConfig]:
    """B_crit of Adam with each ε, the noise scales along runs near it."""
    settings = SCALES[scale]
    return {
        f"epsilon{epsilon:g}": CriticalBatchConfig(
            problem=PROBLEM,
            training=TrainConfig(optimizer="adam", epsilon=epsilon),
            batch_sizes=settings["sizes"],
            goals=settings["goals"],
            num_seeds=settings["seeds"],
            noise_examples=settings["noise_examples"],
        )
        for epsilon in settings["epsilons"]
    }


adam = unit_experiment(
    "adam",
    units,
    fronts=fronts,
    scales={
        "quick": "four batch sizes, three losses, one ε, two seeds",
        "full": "12 batch sizes, five losses, two ε, three seeds",
    },
    help="The critical batch size of Adam, beside plain and preconditioned noise scales.",
)
