"""The predicted edge of a sweep, measured at its starting point in processes of their own, and kept."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

from noisescale import store
from noisescale.estimate import Estimate
from noisescale.measure.stability import measure_stability, simulate_threshold
from noisescale.stability import StabilityConstants
from noisescale.sweep.cell import Cell, cell_problem, one_thread

FOLDER = "predictions"
CONSTANTS = "constants.json"
CURVES = ("lower", "gaussian", "wu", "upper", "lyapunov", "descent")


def constants_at(cell: Cell, out: Path) -> StabilityConstants:
    """The constants where this cell's run starts, measured unless they lie in the sweep's folder `out`."""
    path = out / FOLDER / CONSTANTS
    if (stored := store.read_json(path)) is None:
        with one_thread():
            found = measure_stability(cell_problem(cell))
        stored = _spelt(dataclasses.asdict(found))
        store.write_json(path, stored)
    return StabilityConstants(**_numbers(stored))


def lyapunov_at(cell: Cell, out: Path, *, batch_size: int, constants: StabilityConstants) -> Estimate:
    """The almost-sure threshold where this cell's run starts, simulated unless it lies in `out`."""
    path = out / FOLDER / f"lyapunov-bs{batch_size}.json"
    if (stored := store.read_json(path)) is None:
        with one_thread():
            found = simulate_threshold(cell_problem(cell), batch_size=batch_size, constants=constants)
        stored = _spelt(dataclasses.asdict(found))
        store.write_json(path, stored)
    return Estimate(**_numbers(stored))


def default_rates(constants: StabilityConstants) -> tuple[float, float]:
    """Five decades of learning rates around 2/λ, from a power of ten to another."""
    middle = round(math.log10(2 / constants.sharpness))
    return 10.0 ** (middle - 3), 10.0 ** (middle + 2)


def predicted_rates(
    constants: StabilityConstants,
    lyapunov: Estimate | None,
    *,
    batch_size: int,
    population_size: int,
) -> dict[str, float]:
    """Each curve's η_max(B), and the interval of the simulated one; nan where there is none."""
    rates = constants.rates(batch_size, population_size=population_size)
    if lyapunov is not None:
        rates |= {
            "lyapunov": lyapunov.value,
            "lyapunov_low": lyapunov.low,
            "lyapunov_high": lyapunov.high,
        }
    return {name: rates.get(name, math.nan) for name in (*CURVES, "lyapunov_low", "lyapunov_high")}


def nullable_record(constants: StabilityConstants) -> dict[str, float | None]:
    """The constants for strict JSON: None where there is none."""
    values = dataclasses.asdict(constants)
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _spelt(values: dict[str, Any]) -> dict[str, Any]:
    """Nan and infinity, which strict JSON has no number for, by their names."""
    return {name: value if math.isfinite(value) else str(value) for name, value in values.items()}


def _numbers(values: dict[str, Any]) -> dict[str, Any]:
    return {name: float(value) if isinstance(value, str) else value for name, value in values.items()}
