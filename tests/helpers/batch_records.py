"""Records of runs as the experiments on batch sizes leave them, of numbers that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

Runs = list[tuple[Path, dict[str, Any]]]
STOPS = ("epochs", "updates", "loss")


def small_batches() -> Runs:
    """Accuracies .95 − .01·|log2 η̃ + 9|, a seed's own .001 added; a batch norm .005 better."""
    runs: Runs = []

    def add(norm: str, size: int, exponent: int, seed: int, gain: float, ghost: int | None) -> None:
        accuracy = 0.95 - 0.01 * abs(exponent + 9) + 0.001 * seed + gain
        runs.append(
            (
                Path(norm),
                {
                    "norm": norm,
                    "batch_size": size,
                    "learning_rate": size * 2.0**exponent,
                    "ghost_size": ghost,
                    "seed": seed,
                    "test_accuracy": accuracy - (0.02 if norm == "batch" else 0.0),
                    **({} if norm == "none" else {"renewed_test_accuracy": accuracy}),
                    "train_loss": None,
                    "diverged_at_step": None,
                },
            )
        )

    for norm, gain, sizes in (("none", 0.0, (1, 4, 16, 64)), ("batch", 0.005, (4, 16, 64))):
        for size in sizes:
            for exponent in range(-13, -3):
                for seed in range(3):
                    add(norm, size, exponent, seed, gain + 1e-6 * seed**2 * size, None)
    for ghost in (2, 4, 16):
        for seed in range(4):
            add("ghost", 16, -9, seed, 0.002 * (ghost == 4) + 1e-5 * seed * ghost, ghost)
    return runs


def sharp_minima(ratio: float = 2.0, barrier: float = 0.3) -> Runs:
    """A λ_max that is `ratio` times as large at the large batch, give or take, and a line."""
    runs: Runs = []
    for case in ("sgd", "adam", "f1-adam"):
        for seed in range(1 if case == "f1-adam" else 3):
            for size in (64, 1000):
                larger = ratio * np.exp(0.1 * (seed - 1)) if size == 1000 else 1.0
                phi = {
                    f"phi_{e}_{k}": larger for e in ("0.001", "0.0005", "filter") for k in (10, 50)
                }
                state = {
                    "sharpness": 3.0 * larger,
                    "trace": 50.0 * larger,
                    **phi,
                    "train_loss": 0.01,
                    "train_accuracy": 1.0,
                    "test_loss": 0.2,
                    "test_accuracy": 0.95 - 0.001 * (seed + 1) * (size == 1000),
                    "num_test": 10_000,
                }
                states = [{"stop": stop, "step": 100, **state} for stop in STOPS]
                run = {"batch_size": size, "learning_rate": 0.1, "seed": seed, "case": case}
                runs.append((Path(case), {"part": "minima", "states": states, **run}))
            rows = [
                {
                    "stop": stop,
                    "alpha": alpha,
                    "train_loss": 1 + alpha + 4 * alpha * (1 - alpha) * barrier,
                    "test_loss": 2 - alpha + 8 * alpha * (1 - alpha) * barrier,
                    "train_accuracy": 1.0,
                    "test_accuracy": 0.9,
                    "num_test": 10_000,
                }
                for stop in STOPS
                for alpha in np.linspace(-0.5, 1.5, 41)
            ]
            runs.append((Path(case), {"part": "line", "rows": rows, "case": case, "seed": seed}))
    tuned = {"part": "tuning", "batch_size": 64, "learning_rate": 0.1, "held_out": 0.9}
    return [*runs, (Path("cross_entropy-bs64-lr0.1"), tuned)]


def catapult() -> Runs:
    """λ_max 20,000 at first; below each batch size's edge it falls, above it grows and diverges."""
    runs: Runs = []
    for size, edge in (("1", 5e-4), ("32", 2e-3), ("1024", 3e-3)):
        for rate in (5e-5, 2e-4, 1e-3, 2.5e-3, 8e-3):
            for seed in range(2):
                stable = rate < edge
                steps = np.arange(51 if stable else 12)
                sharpness = 20_000 * np.exp(-steps / 8 if stable else steps)
                ending = {
                    "start_loss": 10.0,
                    "largest_loss": 10.0,
                    "chance_loss": 2.3,
                    "largest_share": 0.2,
                    "train": {"loss": 0.3 if stable else None},
                    "diverged_at_step": None if stable else 11,
                }
                run = {"batch_size": int(size), "learning_rate": rate, "seed": seed, **ending}
                rows = [
                    {"step": int(step), "loss": float(loss), "sharpness": float(value)}
                    for step, loss, value in zip(
                        steps, 10 * np.exp(-steps / 20 if stable else steps), sharpness, strict=True
                    )
                ]
                runs.append((Path("watch"), {"part": "watched", "rows": rows, **run}))
                runs.append((Path("star"), {"part": "star", **run}))
    return runs


def batch_cost() -> Runs:
    """λ_max 20,000 at first; below its batch size's edge it falls, above it grows and diverges."""
    runs: Runs = []
    sources = [("tensors", "slice"), ("noisescale", "slice")]
    sources += [(f"loader, {n} workers", way) for n in (0, 2) for way in ("rebuild", "sampler")]
    for number in range(6):
        common = {"seed": number, "load": 0.5}
        slower = 1 + 0.1 * number  # of a round, which its quotients do not show
        rows = [
            {
                "source": source,
                "way": way,
                "every": every,
                "steps": 100,
                "seconds": slower * 0.1 * (2 + (5 / every if every else 0)),
            }
            for source, way in sources
            for every in (0, 100, 10, 1)
        ]
        runs.append((Path(f"changes-{number:02}"), {"rows": rows, **common}))
        full = [
            {
                "batch_size": size,
                "way": way,
                "seconds": slower * size * 1e-5,
                "mebibytes": size / 100,
                "difference": 1e-6,
            }
            for size in (64, 4096, 60_000)
            for way in ("accumulated", "one pass")
        ]
        runs.append((Path(f"full-{number:02}"), {"rows": full, **common}))
    return runs


def bias_variance(root: Path) -> Runs:
    """Crossed runs with random predictions in their folders, and folds of two rates."""
    rng = np.random.default_rng(0)
    targets, pool_targets = rng.integers(3, size=40), rng.integers(3, size=30)
    runs: Runs = []
    for size in (4, 256):
        for sample in range(3):
            places = rng.integers(30, size=30)
            for start in range(2):
                for order in range(2):
                    folder = root / f"bs{size}-{sample}-{start}-{order}"
                    folder.mkdir(parents=True)
                    np.savez(
                        folder / "predictions.npz",
                        test=rng.dirichlet(np.ones(3), size=40),
                        pool=rng.dirichlet(np.ones(3), size=30),
                        test_targets=targets,
                        pool_targets=pool_targets,
                        in_bag=np.bincount(places, minlength=30),
                    )
                    draws = {"sample": sample, "initialisation": start, "order": order}
                    record = {"part": "bootstrap", "batch_size": size, "seed": start, **draws}
                    record |= {"epochs": 10.0 + order, "train_loss": 0.019 + 0.005 * start}
                    runs.append((folder, record))
        # left out, the largest of three rates errs least, and the middle one within its error
        for factor, error, test in ((0.5, 0.2, 0.12), (1.0, 0.101, 0.1), (2.0, 0.1, 0.11)):
            for fold in (0, 1, 2, 3, 4, -1):
                off = 0.01 * (fold - 2)
                scores = {"test_accuracy": 1 - test, "left_out_accuracy": 1 - error - off}
                rate = {"factor": factor, "learning_rate": 0.1 * factor, "fold": fold}
                run = {"batch_size": size, "seed": 0, "diverged_at_step": None}
                run |= {"train_loss": 0.02}
                runs.append((root, {"part": "folds", **scores, **rate, **run}))
    return runs
