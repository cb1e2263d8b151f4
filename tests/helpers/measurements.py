"""Measurements along a run, as its tables hold them and as the commands print them with --json."""

import numpy as np
import pandas as pd

STEPS = [0, 10, 20]


def estimate(value, stderr=0.1, low=None, high=None):
    return {"value": value, "stderr": stderr, "low": low, "high": high}


def sharpness_table():
    return pd.DataFrame(
        {
            "step": STEPS,
            "largest_eigenvalue": [1.0, 2.0, 3.0],
            "largest_eigenvalue_stderr": [0.1, 0.1, np.nan],
            "converged": [1.0, 0.0, 1.0],
            "batch_sharpness": [0.5, np.nan, 1.5],
            "batch_sharpness_stderr": [0.1, np.nan, 0.1],
            "stable_sharpness": [4.0, 4.0, 4.0],
        }
    )


def sharpness_entries(run="run"):
    return [
        {
            "checkpoint": f"{run}/step-{row['step']}.pt",
            "run": run,
            "step": row["step"],
            "reason": None,
            "stable_sharpness": row["stable_sharpness"],
            "eigenvalues": [
                {
                    "which": "largest",
                    **estimate(row["largest_eigenvalue"]),
                    "converged": bool(row["converged"]),
                }
            ],
            "batch_sharpness": None
            if np.isnan(row["batch_sharpness"])
            else estimate(row["batch_sharpness"]),
            "density": None,
            "phi": [],
        }
        for row in sharpness_table().to_dict("records")
    ]


def noise_table():
    return pd.DataFrame(
        {
            "step": STEPS,
            "loss": [2.0, 1.0, 0.5],
            "simple": [10.0, np.nan, 30.0],
            "simple_low": [8.0, 5.0, 25.0],
            "simple_high": [12.0, np.inf, 35.0],
            "full": np.nan,
            "full_low": np.nan,
            "full_high": np.nan,
        }
    )


def noise_entries(run="run"):
    return [
        {
            "run": run,
            "step": row["step"],
            "reason": None,
            "population": "dataset",
            "squared_gradient_norm": estimate(0.2, low=0.15, high=0.25),
            "gradient_variance": estimate(2.0, low=1.9, high=2.1),
            "simple": estimate(
                None if np.isnan(row["simple"]) else row["simple"],
                low=row["simple_low"],
                high=None if np.isinf(row["simple_high"]) else row["simple_high"],
            ),
            "full": None,
            "per_layer": None,
            "per_class": None,
            "top_examples": [{"index": 7, "share": 0.5}],
        }
        for row in noise_table().to_dict("records")
    ]
