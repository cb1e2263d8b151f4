"""Records of runs as the experiments on the noise's composition leave them, of known numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from noisescale.training.records.folder import write_json
from noisescale.training.records.tables import NOISE, NOISE_COLUMNS, PRECONDITIONED_COLUMNS

COMPOSITION = {  # the experiments
    *("model_size", "heterogeneity", "anatomy", "temperature", "importance", "adam"),
}
Runs = list[tuple[Path, dict[str, Any]]]


def looks(simple: float, goals: tuple[float, ...], *, full: float | None = None) -> list[Any]:
    """Two looks a loss, whose means have this B_simple, though neither has it by itself."""
    rows: list[dict[str, Any]] = []
    for goal in goals:
        for signal, noise in ((0.5, 1.25), (1.5, 0.75)):
            row = {"goal": goal, "step": int(100 / goal), "loss": goal}
            row |= {"squared_gradient_norm": signal, "gradient_variance": noise * simple}
            if full is not None and signal == 0.5:
                row |= {"gradient_curvature": 2.0, "hessian_covariance_trace": 2.0 * full}
            rows.append(row)
    return rows


def model_size(slope: float = 0.1, by_depth: float = -0.3) -> Runs:
    """B_simple ∝ P^slope·depth^by_depth, each seed's slope .01 apart, and B_noise twice that."""
    sizes = [(width, 2) for width in (8, 32, 128)] + [(32, depth) for depth in (1, 4)]
    runs: Runs = []
    for rate in (0.1, 0.05):
        for seed in range(3):
            for width, depth in sizes:
                count = 800 * width  # of a depth's own layers there are none
                simple = 50 * (1 + seed) * count ** (slope + 0.01 * (seed - 1)) * depth**by_depth
                runs.append(
                    (
                        Path(f"{rate}-{width}-{depth}-{seed}"),
                        {
                            "learning_rate": rate,
                            "width": width,
                            "depth": depth,
                            "num_parameters": count,
                            "seed": seed,
                            "rows": looks(simple, (0.5, 0.25), full=2 * simple),
                        },
                    )
                )
    return runs


def temperature(of_size: float = 1.0, of_rate: float = 0.5) -> Runs:
    """B_simple ∝ B^of_size·ε^(−of_rate), each seed's first exponent .01 apart."""
    runs: Runs = []
    for seed in range(3):
        for size in (16, 64):
            for rate in (0.05, 0.2):
                exponent = of_size + 0.01 * (seed - 1)
                simple = (1 + seed) * size**exponent / rate**of_rate
                run = {"batch_size": size, "learning_rate": rate, "seed": seed}
                runs.append(
                    (Path(f"{size}-{rate}-{seed}"), run | {"rows": looks(simple, (0.5, 0.25))})
                )
    return runs


def heterogeneity(excess: float = 1.1) -> Runs:
    """The law at initialisation times `excess`, give or take a seed's own .01; later p triples."""
    runs: Runs = []

    def law(clean: float, share: float, classes: int) -> float:
        return (clean + 1) / (1 - share * classes / (classes - 1)) ** 2 - 1

    def off_law(seed: int) -> float:
        return float(excess * np.exp(0.01 * (seed - 1)))

    for classes, share in ((10, 0.0), (10, 0.2), (10, 0.4), (2, 0.0), (2, 0.2)):
        for seed in range(3):
            clean = (90 if classes == 10 else 45) + seed
            simple = law(clean, share, classes) * (off_law(seed) if share else 1.0)
            record: dict[str, Any] = {"num_classes": classes, "seed": seed, "rows": []}
            if share:  # as a configuration says it
                record["label_noise"] = share
            else:  # of equal outputs: no mean gradient under even labels
                record["mixture"] = {
                    **{"clean_clean": 0.5, "clean_even": 0.0, "even_even": 0.0},
                    **dict.fromkeys(["clean_squares", "even_squares"], 0.5 * (clean + 1)),
                }
                own = off_law(seed)
                record["redrawn"] = [
                    {
                        "label_noise": wrong,
                        "squared_gradient_norm": 0.5,
                        "gradient_variance": 0.5 * law(clean, wrong, classes) * own,
                    }
                    for wrong in ((0.2, 0.4) if classes == 10 else (0.2,))
                ]
            for point, step, value in (
                ("step 0", 0, simple),
                ("step 100", 100, clean * (3 if share else 1)),
                ("equal loss", 40, clean * (2 if share else 1)),
            ):
                rows = looks(value, (1.0,)) if point == "equal loss" else looks(value, (1.0,))[:1]
                for row in rows:
                    noise = {
                        "squared_gradient_norm": row["squared_gradient_norm"],
                        "gradient_variance": row["gradient_variance"],
                    }
                    if len(rows) == 1:  # of one look the ratio is its own
                        noise["gradient_variance"] = value * noise["squared_gradient_norm"]
                    record["rows"].append(
                        {"point": point, "step": step, "validation_loss": 1.2, **noise}
                    )
            runs.append((Path(f"{classes}-{share}-{seed}"), record))
    return [*runs, *_mixtures()]


def _mixtures(ratio: float = 1.5) -> Runs:
    """Ten unequal classes: B_simple times `ratio`, give or take a seed's own .01."""
    runs: Runs = []
    for seed in range(3):
        simple = (90 + seed) * ratio * np.exp(0.01 * (seed - 1))
        rows = [
            {"point": point, "step": step, "validation_loss": 1.2}
            | {"squared_gradient_norm": 0.5, "gradient_variance": 0.5 * simple}
            for point, step in (("step 0", 0), ("step 100", 100))
        ]
        record = {"num_classes": 10, "imbalance": 10.0, "seed": seed, "rows": rows}
        runs.append((Path(f"imbalance-{seed}"), record))
    return runs


def anatomy() -> Runs:
    """From loss .4 to .02 |G|² falls by 16 and tr Σ by 4; of 100 noisiest two seeds share 40."""
    runs: Runs = []
    for seed in range(3):
        points = []
        for goal, signal, noise, leading in (
            (None, 0.25, 30.0, 1.0),
            (0.4, 1.6, 160.0 * np.exp(0.01 * seed), 2.0),
            (0.25, 0.8, 120.0, 4.0),
            (0.02, 0.1, 40.0 * np.exp(0.01 * seed), 8.0),
        ):
            values = {"squared_gradient_norm": signal, "gradient_variance": noise}
            own = np.arange(60) + 1000 * (seed + 1) + (0 if goal == 0.02 else 100)
            components = [
                {"first": first, "last": last, "simple": simple}
                | {"squared_gradient_norm": 0.1, "gradient_variance": 0.1 * simple}
                for first, last, simple in (
                    (1, 1, 10.0 * leading),
                    (5, 8, 10.0 * leading),
                    (9, 16, 1e6),
                    (65, 128, 20.0),
                )
            ]
            lorenz = [{"examples": 0.01, "variance": 0.5}, {"examples": 1.0, "variance": 1.0}]
            points.append(
                {
                    "goal": goal,
                    "step": 0 if goal is None else int(10 / goal),
                    "loss": goal,
                    **values,
                    "top_share": 0.5,
                    "without_noisiest": values | {"gradient_variance": noise / 2},
                    "without_random": values,
                    "anatomy": {
                        "effective_examples": 1000.0,
                        "importance": {"value": 0.2},
                        "between_classes": {"value": 0.1},
                        "misclassified": {"examples": 0.05, "variance": 0.4},
                        "noisiest": [*range(40), *own.tolist()],
                        "lorenz": lorenz,
                        "components": components,
                    },
                }
            )
        runs.append((Path(f"seed{seed}"), {"seed": seed, "points": points}))
    return runs


def front(
    root: Path,
    critical: dict[float, float],
    *,
    min_steps: float = 100.0,
    spread: float = 0.01,
    num_seeds: int = 3,
) -> Runs:
    """A measurement of B_crit by goal, on its hyperbola; seeds differ by `spread` in its log.

    Returns:
        One of its runs, of which nothing but the folder is known.
    """
    rows = []
    for goal, batch in critical.items():
        for seed in range(num_seeds):
            own = batch * np.exp(spread * (seed - 1))
            for size in (16, 32, 64, 128, 256, 512):
                steps = min_steps * (1 + own / size)
                row = {"goal": goal, "batch_size": size, "seed": seed}
                row |= {"censored": 0, "diverged": 0}
                rows += [
                    {**row, "learning_rate": rate, "steps": steps * slower}
                    for rate, slower in ((0.05, 2), (0.1, 1), (0.2, 2))
                ]
    root.mkdir(parents=True)
    pd.DataFrame(rows).to_csv(root / "steps_to_goal.csv", index=False)
    return [(root / "cells" / "one", {"seed": 0})]


def importance(out: Path) -> Runs:
    """B_crit falls by .5 at both losses where .4 and .6 were forecast, give or take .01 a seed."""
    runs = front(out / "fronts" / "even", {0.4: 60.0, 0.1: 200.0}, spread=0.0)
    runs += front(out / "fronts" / "importance", {0.4: 30.0, 0.1: 100.0}, spread=0.01)
    factors = [
        {"seed": seed, "goal": goal, "left": left, "best": left / 2}
        for seed in range(3)
        for goal, left in ((0.4, 0.4), (0.1, 0.6))
    ]
    write_json(out / "forecast.json", {"factors": factors})
    for seed in range(3):
        rows = [
            {"step": 10 * place, "loss": loss, "left": 0.9 * loss, "best": loss / 2}
            | {"squared_gradient_norm": 1.0, "gradient_variance": 10.0}
            for place, loss in enumerate((1.0, 0.4, 0.1))
        ]
        runs.append((out / f"forecast-seed{seed}", {"seed": seed, "rows": rows}))
    return runs


def adam(out: Path) -> Runs:
    """B^P_simple is half of B_crit at every loss; B_simple the same at all, and a hundredth."""
    goals = {1.0: 30.0, 0.5: 60.0, 0.25: 120.0}
    runs: Runs = []
    for epsilon in ("1e-08", "0.001"):
        root = out / "fronts" / f"epsilon{epsilon}"
        runs += front(root, goals, spread=0.0)
        for seed in range(3):
            folder = root / "noise-100" / "to-0.25" / f"seed{seed}"
            folder.mkdir(parents=True)
            steps = np.arange(0, 401, 2)
            losses = np.exp(np.log(2.0) - steps / 100 * np.log(2.0))
            pd.DataFrame({"step": steps, "loss": losses}).to_csv(folder / "losses.csv", index=False)
            _noise_rows(seed).to_csv(folder / NOISE, index=False)
            runs.append((folder, {"seed": seed, "batch_size": 64}))
    return runs


def _noise_rows(seed: int) -> pd.DataFrame:
    """noise.csv of a run in which B_simple is 1 + seed, and B^P_simple 100 times it."""
    rows = []
    for step in range(0, 401, 50):
        row: dict[str, Any] = dict.fromkeys([*NOISE_COLUMNS, *PRECONDITIONED_COLUMNS], np.nan)
        row |= {"step": step, "epoch": step / 100, "batch_size": 64, "learning_rate": 1e-3}
        row |= {"num_examples": 1000, "population_size": 1000, "num_probes": 4}
        row |= {"hessian_examples": 250, "reason": "", "preconditioned_reason": ""}
        for prefix, factor in (("", 1.0), ("preconditioned_", 100.0)):
            values = {
                "squared_gradient_norm": 1.0,
                "gradient_variance": factor * (1 + seed),
                "simple": factor * (1 + seed),
                "gradient_curvature": 1.0,
                "hessian_covariance_trace": 2 * factor * (1 + seed),
                "full": 2 * factor * (1 + seed),
            }
            for name, value in values.items():
                row[f"{prefix}{name}"] = value
                row[f"{prefix}{name}_stderr"] = 0.01 * value
                row[f"{prefix}{name}_low"] = 0.98 * value
                row[f"{prefix}{name}_high"] = 1.02 * value
        rows.append(row)
    return pd.DataFrame(rows)
