"""The predicted edge of a sweep, measured where its runs start, by its workers, and kept."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from noisescale.errors import MeasurementError, RunFolderError
from noisescale.measure.sharpness import SharpnessOptions, measure_sharpness
from noisescale.measure.stability import measure_stability, simulate_threshold
from noisescale.problems.problem import num_examples_of
from noisescale.statistics.estimate import Estimate, undefined
from noisescale.statistics.stability.curves import StabilityConstants
from noisescale.studies.jobs.cell import Cell, cell_problem, one_thread
from noisescale.studies.stability_map.config import SweepConfig
from noisescale.training.config import ADAPTIVE_RATE
from noisescale.training.records.folder import read_json, write_json

Record = TypeVar("Record")
FOLDER = "predictions"
CONSTANTS = "constants.json"
SHARPNESS = "sharpness.json"
SHARPNESS_EXAMPLES = 1000  # for λ alone, by which a range of five decades is chosen
FIVE_DECADES = 1e5  # of rates where they are not given: 2/λ, two above it and three below
CURVES = ("lower", "gaussian", "wu", "upper", "lyapunov", "descent")


def constants_at(cell: Cell, out: Path) -> StabilityConstants:
    """The constants where a cell's run starts, measured unless they lie in the sweep's folder."""
    if (constants := stored_constants(out)) is not None:
        return constants
    with one_thread():
        problem = cell_problem(cell)
        problem.model.eval()  # as runs are evaluated, however a factory leaves it
        measured = measure_stability(problem)
    path, values = out / FOLDER / CONSTANTS, _spelt(dataclasses.asdict(measured))
    write_json(path, values)
    return _parse(path, StabilityConstants.from_dict, values)


def stored_constants(out: Path) -> StabilityConstants | None:
    """The constants that `constants_at` has left in a sweep's folder, if any."""
    path = out / FOLDER / CONSTANTS
    stored = read_json(path)
    return None if stored is None else _parse(path, StabilityConstants.from_dict, stored)


def sharpness_at(cell: Cell, out: Path) -> float:
    """λ alone where a cell's run starts, measured unless it lies in the sweep's folder.

    By products with the mean matrix, so that it takes no more of a model with thousands of outputs.
    """
    path = out / FOLDER / SHARPNESS
    if (stored := read_json(path)) is not None:
        return _parse(path, lambda values: float(values["sharpness"]), stored)
    with one_thread():
        problem = cell_problem(cell)
        examples = min(SHARPNESS_EXAMPLES, num_examples_of(problem.train))
        options = SharpnessOptions(num_examples=examples, ggn=True)
        top = measure_sharpness(problem, options=options).largest
    if top is None or not (top.converged and top.value.value > 0):
        raise MeasurementError(
            f"{type(problem.model).__name__}: the largest eigenvalue of its Gauss–Newton matrix is "
            "not above zero, or has not converged"
        )
    write_json(path, {"sharpness": top.value.value})
    return float(top.value.value)


def lyapunov_at(
    cell: Cell, out: Path, *, batch_size: int, constants: StabilityConstants
) -> Estimate:
    """The almost-sure threshold where this cell's run starts, simulated unless it lies in `out`."""
    if (stored := stored_lyapunov(out, batch_size)) is not None:
        return stored
    with one_thread():
        threshold = simulate_threshold(
            cell_problem(cell), batch_size=batch_size, constants=constants
        )
    path = out / FOLDER / f"lyapunov-bs{batch_size}.json"
    write_json(path, _spelt(dataclasses.asdict(threshold)))
    return threshold


def stored_lyapunov(out: Path, batch_size: int) -> Estimate | None:
    """The threshold that `lyapunov_at` has left in a sweep's folder, if any."""
    path = out / FOLDER / f"lyapunov-bs{batch_size}.json"
    return None if (stored := read_json(path)) is None else _parse(path, Estimate.from_dict, stored)


def with_rates(config: SweepConfig, sharpness: float | None) -> SweepConfig:
    """The sweep with the ends of its learning rates, five decades apart where it does not say.

    Without either, they go from three decades below the power of ten nearest to 2/λ to two above;
    of an adaptive optimizer, where λ is None, from two below its customary rate to three above.
    """
    low, high = config.lr_min, config.lr_max
    if low is None and high is None:
        if sharpness is None:
            low = ADAPTIVE_RATE / 100
        else:
            low = 10.0 ** (round(math.log10(2 / sharpness)) - 3)
    if low is None and high is not None:
        low = high / FIVE_DECADES
    assert low is not None
    return replace(config, lr_min=low, lr_max=FIVE_DECADES * low if high is None else high)


def predicted_rates(
    constants: StabilityConstants,
    lyapunov: Estimate | None,
    *,
    batch_size: int,
    population_size: int,
) -> dict[str, float]:
    """Each curve's η_max(B) and, below, the ends of its interval; nan where there is none."""
    rates = constants.rate_estimates(batch_size, population_size=population_size)
    if lyapunov is not None:
        rates["lyapunov"] = lyapunov
    unknown = undefined(num_samples=0)
    by_curve = {name: rates.get(name, unknown) for name in CURVES}
    values = {name: rate.value for name, rate in by_curve.items()}
    for name, rate in by_curve.items():
        values |= {f"{name}_low": rate.low, f"{name}_high": rate.high}
    return values


def _spelt(values: dict[str, Any]) -> dict[str, Any]:
    """Nan and infinity, which strict JSON has no number for, by their names."""
    return {
        name: _spelt(value)
        if isinstance(value, dict)
        else value
        if math.isfinite(value)
        else str(value)
        for name, value in values.items()
    }


def _parse(
    path: Path, read: Callable[[Mapping[str, Any]], Record], values: dict[str, Any]
) -> Record:
    """The record in a file of ours; RunFolderError where it is damaged."""
    try:
        return read(values)
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged ({error}): delete it and run again") from error
