"""A first look at a problem: its loss and noise where it starts, and what steps of it cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from noisescale.errors import MeasurementError, RunFolderError, SettingError
from noisescale.measure.noise import measure_noise
from noisescale.problems.problem import Params, Problem, num_examples_of
from noisescale.statistics.critical_batch.calibration.model import calibration
from noisescale.statistics.estimate import jsonable
from noisescale.statistics.gradient_noise import NoiseScale
from noisescale.studies.jobs.cell import Cell, cell_problem
from noisescale.studies.jobs.short_run import EVALUATED, LossCurve
from noisescale.studies.recommend.config import Budget
from noisescale.training.config import ADAPTIVE_RATE
from noisescale.training.console import duration_text
from noisescale.training.records.folder import read_json, write_json
from noisescale.training.tracking.noise import FEWEST_EXAMPLES, NUM_EXAMPLES
from noisescale.training.tracking.rows import num_due
from noisescale.training.trainer import Training

LOOK = "look.json"
WARM_UP, FEWEST_TIMED, MOST_TIMED = 3, 5, 53  # updates: the first ones take longer
TIMED_SHARE = 0.02  # of the budget, for timed updates; and for the noise at the start
MOST_TIMED_SHARE = 0.1  # after which two updates must do
FIRST_NOISE_EXAMPLES, MORE_NOISE_EXAMPLES = 64, 1024  # at the start: on the former, then as timed
LOOK_SHARE = 0.002  # of the budget, for a look at the loss, of which there are some seventy
FEWEST_EVALUATED = 256  # examples of a look: their mean is within 6 % of the spread
LOOKS = 8  # at the loss of a rate's run, the last two of which are averaged
GROWTH = 8  # times the examples of a measurement, of which the next one is made, at most
TYPICAL = 6  # rates that a search takes: 5 to 7 where the first guess is near
SEARCH_SHARE, RUN_SHARE = 0.4, 0.5  # of what is left after the look; the rest is for a run again
NOISE_SHARE = 0.5  # of the run's time
FEWEST_RATE_STEPS, FEWEST_RUN_STEPS = 10, 40  # with fewer, no rate and no noise scale can be told


@dataclass(frozen=True, kw_only=True)
class Look:
    """What is known of a problem before it is trained.

    num_examples: in the training set. batch_size: of the runs. loss: at the start. first_rate: with
    which the search begins. update, evaluation, example: seconds of an update, of a look at the
    loss on num_evaluated examples, and of an example's part in a measurement of the noise. simple:
    B_simple at the start, nan where not resolved. seconds: that the look took.
    """

    num_examples: int
    batch_size: int
    loss: float
    first_rate: float
    update: float
    evaluation: float
    num_evaluated: int
    example: float
    simple: float
    seconds: float

    @classmethod
    def read(cls, out: Path) -> Look | None:
        """The one in a folder, None where there is none."""
        stored = read_json(out / LOOK)
        if stored is None:
            return None
        try:
            known: dict[str, Any] = {
                name: math.nan if value is None else value for name, value in stored.items()
            }
            return cls(**known)
        except TypeError as error:
            raise RunFolderError(f"{out / LOOK} is damaged: delete it and run again") from error


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How the time that is left is divided.

    rate_steps: updates of each learning rate tried. run_steps: of the run that is tracked, at most.
    noise_examples: on which the noise is measured along it. num_measurements: of it. seconds: that
    all of it is expected to take. wanted_steps: that the run would take without a budget.
    """

    rate_steps: int
    run_steps: int
    noise_examples: int
    num_measurements: int
    seconds: float
    wanted_steps: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def look_at(
    cell: Cell,
    out: Path,
    budget: Budget,
    *,
    learning_rate: float | None,
    batch_size_of: Callable[[int], int],
) -> Look:
    """The look, taken unless it lies in the folder.

    cell: a run of the problem, of which the batch size and the learning rate do not count.
    learning_rate: with which the search is to begin; None: by the gradient. batch_size_of: the
    runs' batch size, from the number of training examples.
    """
    stored = Look.read(out)
    if stored is not None:
        return stored
    started = budget.now()
    problem = cell_problem(cell)
    num_examples = num_examples_of(problem.train)
    if num_examples < FEWEST_EXAMPLES:
        raise SettingError(
            f"{num_examples} training examples: the noise of their gradients takes "
            f"{FEWEST_EXAMPLES} or more"
        )
    batch_size = batch_size_of(num_examples)
    problem.model.eval()
    evaluated = _num_evaluated(problem, budget)
    curve = LossCurve(problem, num_examples=evaluated)
    before = budget.now()
    loss = curve.look(0, problem.model)
    evaluation = budget.now() - before
    if not math.isfinite(loss):
        raise MeasurementError(
            f"the mean loss of the model as it is made is {loss}, so that there is nothing to "
            "measure: look at its inputs, its initial parameters and its loss"
        )
    noise, example = noise_within(
        problem,
        budget,
        seconds=TIMED_SHARE * budget.seconds,
        most=min(MORE_NOISE_EXAMPLES, num_examples),
    )
    first_rate = learning_rate or _first_rate(cell, loss, _square(noise, batch_size))
    update = _seconds_of_update(problem, cell, batch_size, first_rate, budget)
    look = Look(
        num_examples=num_examples,
        batch_size=batch_size,
        loss=loss,
        first_rate=float(f"{first_rate:.2g}"),
        update=update,
        evaluation=evaluation,
        num_evaluated=evaluated,
        example=example,
        simple=noise.simple.value,
        seconds=budget.now() - started,
    )
    write_json(out / LOOK, jsonable(asdict(look)))
    return look


def _num_evaluated(problem: Problem, budget: Budget) -> int:
    """Examples of a look at the loss, as many as a five-hundredth of the budget pays for."""
    few = LossCurve(problem, num_examples=FEWEST_EVALUATED)
    few.look(0, problem.model)  # of which libraries are loaded
    before = budget.now()
    few.look(0, problem.model)
    an_example = (budget.now() - before) / few.examples.num_examples
    affordable = int(LOOK_SHARE * budget.seconds / max(an_example, 1e-9))
    return min(EVALUATED, max(FEWEST_EVALUATED, affordable))


def noise_within(
    problem: Problem,
    budget: Budget,
    *,
    seconds: float,
    most: int,
    seed: int = 0,
    preconditioner: Params | None = None,
) -> tuple[NoiseScale, float]:
    """The noise on as many examples as so many seconds pay for, and the seconds for an example.

    On few examples first, twice, of which the second time counts: the first loads libraries. most:
    examples. preconditioner: P by parameter, under which the noise is measured as well.
    """
    examples = min(FIRST_NOISE_EXAMPLES, most)
    common: dict[str, Any] = {"seed": seed, "preconditioner": preconditioner}
    measure_noise(problem, num_examples=examples, **common)
    while True:
        before = budget.now()
        noise = measure_noise(problem, num_examples=examples, **common)
        an_example = (budget.now() - before) / examples
        more = int(min(most, seconds / max(an_example, 1e-9)))
        if more < 2 * examples:
            return noise, an_example
        # not at once: what is timed on few examples is not known well
        examples = min(more, GROWTH * examples)


def _square(noise: NoiseScale, batch_size: int) -> float:
    """E|g_B|² of a batch's gradient; where |G|² is not resolved it may come out below zero."""
    square = max(noise.squared_gradient_norm.value, 0.0)
    return square + noise.gradient_variance.value / batch_size


def _first_rate(cell: Cell, loss: float, square: float) -> float:
    """Where the search begins: the rate whose first step promises what good runs' first steps do.

    Over the runs of the calibration, ε·E|g_B|²/L_0 at the best rate is about the same.
    """
    if cell.training.is_adaptive:
        return ADAPTIVE_RATE
    if not square > 0:
        raise MeasurementError(
            "the gradient is zero where the model starts, so that no step changes it: is a "
            "parameter trainable, and does the loss depend on it?"
        )
    unit = calibration("simple", with_rate=True).unit
    return (1 - cell.training.momentum) * unit * (abs(loss) or 1.0) / square


def _seconds_of_update(
    problem: Problem, cell: Cell, batch_size: int, rate: float, budget: Budget
) -> float:
    """The median of some updates, as many as a fiftieth of the budget pays for.

    Without the first ones, in which libraries are loaded and memory is found.
    """
    config = with_run(cell, batch_size, rate, MOST_TIMED).training
    begun = before = budget.now()
    times: list[float] = []
    made = 0
    for step in Training(problem, config).calls(lambda step: False):
        now = budget.now()
        times.append((now - before) / (step - made))
        before, made = now, step
        spent = (now - begun) / budget.seconds
        enough = WARM_UP + FEWEST_TIMED if spent < MOST_TIMED_SHARE else 2
        if spent > TIMED_SHARE and len(times) >= enough:
            break
    return statistics.median(times[min(WARM_UP, len(times) - 1) :])


def with_run(cell: Cell, batch_size: int, rate: float, max_steps: int) -> Cell:
    """The cell with a run of this batch size, rate and length."""
    training = replace(
        cell.training,
        batch_size=batch_size,
        learning_rate=rate,
        epochs=max_steps,  # an epoch has an update or more, so that the steps end it
        max_steps=max_steps,
    )
    return replace(cell, training=training)


def plan(look: Look, budget: Budget, *, wanted_steps: int) -> Plan:
    """What the time that is left pays for; SettingError where that is too little for anything.

    wanted_steps: of the run, where time does not matter.
    """
    left = budget.left
    looks_at_loss = LOOKS * look.evaluation
    rate_seconds = SEARCH_SHARE * left / TYPICAL - looks_at_loss
    run_seconds = RUN_SHARE * left
    rate_steps = int(min(wanted_steps, max(rate_seconds, 0.0) / look.update))
    measured = num_measurements(wanted_steps)
    run_steps = int(
        min(
            wanted_steps,
            ((1 - NOISE_SHARE) * run_seconds - measured * look.evaluation) / look.update,
        )
    )
    fewest = min(FEWEST_RATE_STEPS, wanted_steps), min(FEWEST_RUN_STEPS, wanted_steps)
    if rate_steps < fewest[0] or run_steps < fewest[1]:
        needed = max(
            TYPICAL * (FEWEST_RATE_STEPS * look.update + looks_at_loss) / SEARCH_SHARE,
            (FEWEST_RUN_STEPS * look.update + measured * look.evaluation)
            / (1 - NOISE_SHARE)
            / RUN_SHARE,
        )
        minutes = math.ceil((needed + look.seconds) / 60 * 1.25)
        raise SettingError(
            f"{duration_text(budget.seconds)} are too few: an update at B = {look.batch_size} "
            f"takes {look.update:.2g} s and a look at the loss {look.evaluation:.2g} s; give "
            f"--minutes {minutes} or more, or a smaller --bs"
        )
    measured = num_measurements(run_steps)
    noise_seconds = run_seconds - run_steps * look.update - measured * look.evaluation
    examples = int(noise_seconds / measured / max(look.example, 1e-9))
    examples = min(look.num_examples, NUM_EXAMPLES, max(examples, FIRST_NOISE_EXAMPLES))
    seconds = TYPICAL * (rate_steps * look.update + looks_at_loss)
    seconds += run_steps * look.update + measured * (look.evaluation + examples * look.example)
    return Plan(
        rate_steps=rate_steps,
        run_steps=run_steps,
        noise_examples=examples,
        num_measurements=measured,
        seconds=seconds,
        wanted_steps=wanted_steps,
    )


def num_measurements(steps: int) -> int:
    """How often the noise is measured along a run, at its start and its end besides."""
    return 1 + num_due(0, steps, "log")
