"""Where the runs start: the loss there, and the law that the first learning rates follow."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

from noisescale.errors import NoisescaleError, RunFolderError, SettingError
from noisescale.measure.noise import measure_noise
from noisescale.problems.config import FactoryConfig, ProblemConfig
from noisescale.problems.factory import build_own_problem
from noisescale.problems.problem import num_examples_of
from noisescale.statistics.estimate import jsonable
from noisescale.studies.critical_batch.config import GoalSplit
from noisescale.studies.jobs.cell import Cell, cell_problem, count_examples, one_thread
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.records.folder import read_json, write_json

START = "start.json"
NUM_EXAMPLES = 2000  # of which ε_max and B_noise are measured: they need be right to a factor
NUM_PROBES = 16  # of B_noise: their error, 1/√16 of a probe's, is below that of the examples
LEAST_EXAMPLES = 16  # of which a quarter, on which H is measured, have errors


def hessian_settings(num_examples: int) -> dict[str, Any]:
    """How B_noise is measured on so many examples, at the start and along runs."""
    hessian_examples = max(num_examples, LEAST_EXAMPLES) // 4
    return {"hessian": True, "num_probes": NUM_PROBES, "hessian_examples": hessian_examples}


def examples_for(problem: ProblemConfig | FactoryConfig, split: GoalSplit) -> int:
    """How many training examples the problem has; SettingError where it lacks the split."""
    if isinstance(problem, ProblemConfig):  # which has every split
        return count_examples(problem)
    if split == "test" and build_own_problem(problem).test is None:
        raise SettingError(f"{problem.factory} has no test examples: give --goal-split train")
    return count_examples(problem)


class Start(NamedTuple):
    """The loss on the fixed subset, ε_max and B_noise; nan where the curvature gives none.

    seconds_an_example: that measuring B_noise took; nan where it is not known.
    """

    loss: float
    max_rate: float
    rate_bend: float
    seconds_an_example: float = math.nan


def stored_start(out: Path, *, curvature: bool) -> Start | None:
    """What `start_at` has left in the folder `out`; None where that lacks what is asked for."""
    path = out / START
    stored = read_json(path)
    if stored is None or (curvature and "max_rate" not in stored):
        return None
    return _parse(path, stored)


def start_at(cell: Cell, out: Path, split: GoalSplit, *, curvature: bool) -> Start:
    """What is known where this cell's run starts, measured unless it lies in the folder `out`.

    curvature: whether ε_max and B_noise, by (2.6) of McCandlish et al. 2018, are measured too.
    """
    if (start := stored_start(out, curvature=curvature)) is not None:
        return start
    path = out / START
    with one_thread():
        problem = cell_problem(cell)
        problem.model.eval()
        measured = {"loss": LossCurve(problem, split).look(0, problem.model)}
        if curvature:
            examples = min(NUM_EXAMPLES, num_examples_of(problem.train))
            measured |= {"max_rate": math.nan, "rate_bend": math.nan}
            began = time.perf_counter()
            try:
                noise = measure_noise(problem, num_examples=examples, **hessian_settings(examples))
            except NoisescaleError:  # whatever keeps it from being measured: the rates can be given
                pass
            else:
                if noise.curvature is not None and noise.full is not None:
                    measured["max_rate"] = noise.curvature.max_learning_rate.value
                    measured["rate_bend"] = noise.full.value
                measured["seconds_an_example"] = (time.perf_counter() - began) / examples
    finite = jsonable(measured)
    write_json(path, finite)
    return _parse(path, finite)


def _parse(path: Path, stored: dict[str, float | None]) -> Start:
    def number(name: str) -> float:
        value = stored.get(name)
        return math.nan if value is None else float(value)

    try:
        return Start(*map(number, Start._fields))
    except (TypeError, ValueError) as error:
        raise RunFolderError(f"{path} is damaged ({error}): delete it and run again") from error
