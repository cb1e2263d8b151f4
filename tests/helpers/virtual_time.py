"""A measurement of the critical batch size in virtual time, on runs that cost what a formula says.

The searches, and what they tell of the time left, are those of the package; nothing is trained.
"""

import heapq
import math
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from noisescale.problems.config import ProblemConfig
from noisescale.studies.critical_batch import run as engine
from noisescale.studies.critical_batch.config import CriticalBatchConfig
from noisescale.studies.critical_batch.runs.goal_run import GoalRun
from noisescale.studies.critical_batch.runs.start import Start
from noisescale.studies.jobs import folder
from noisescale.studies.jobs.options import StudyOptions

NUM_EXAMPLES = 1024
GOALS = (0.5, 0.2)


@dataclass(frozen=True)
class World:
    """What runs do, and what they take.

    critical: B_crit. step, example: the seconds of an update, and of each of its examples. noise:
    the standard deviation of a run's log seconds.
    """

    critical: float
    step: float
    example: float
    noise: float = 0.2
    num_processes: int = 2
    seed: int = 0

    def make(self, cell, rng):
        """The run of a cell that ends at the last goal, and its seconds."""
        training = cell.training
        size, rate = training.batch_size, training.learning_rate
        best = 1 / (1 + self.critical / size)
        off = math.log2(rate / best)
        time = 20 * (1 + self.critical / size) * math.exp(0.15 * off**2)  # of L = 1/(1 + t/time)
        looks = np.unique(np.geomspace(1, training.max_steps, 60).round())
        losses = 1 / (1 + looks / time) if off < 3 else np.full(len(looks), np.nan)
        reached = np.flatnonzero(losses <= GOALS[-1])
        end = min(reached[0] + 8, len(looks) - 1) if len(reached) else len(looks) - 1
        steps = looks[: end + 1]
        seconds = float(
            steps[-1] * (self.step + self.example * size) * math.exp(self.noise * rng.normal())
        )
        summary = {
            "batch_size": size,
            "learning_rate": rate,
            "seed": training.seed,
            "steps": int(steps[-1]),
            "examples_seen": int(steps[-1]) * size,
            "seconds": seconds,
            "best_loss": float(np.nanmin(losses[: end + 1])) if off < 3 else None,
            "diverged_at_step": None if off < 3 else 1,
        }
        curve = pd.DataFrame({"step": steps, "loss": losses[: end + 1]})
        return GoalRun(summary, curve, cell.path)


def replay(monkeypatch, world, sizes, *, num_seeds=3):
    """(share of the time gone, seconds left as estimated, and truly) after each run."""
    rng = np.random.default_rng(world.seed)
    clock = [0.0]
    queue, waiting, seen = [], [], []  # of (end, number, future, run), of cells, of estimates

    class Pool:
        num_processes = world.num_processes

        def submit(self, function, goal_cell):
            future = Future()
            waiting.append((future, goal_cell.cell))
            start()
            return future

    def start():
        while waiting and len(queue) < world.num_processes:
            future, cell = waiting.pop(0)
            run = world.make(cell, rng)
            end = clock[0] + run.summary["seconds"] + 0.3
            heapq.heappush(queue, (end, rng.random(), future, run))

    def wait(futures):
        if all(future.done() for future in futures):
            return futures
        if clock[0]:
            seen.append((clock[0], measurement.tasks.progress.seconds_left()))
        clock[0], _, future, run = heapq.heappop(queue)
        future.set_result(run)
        start()
        return {future}

    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(engine, "stored_goal_run", lambda cell: None)
    config = CriticalBatchConfig(
        problem=ProblemConfig(dataset="digits"), goals=GOALS, batch_sizes=sizes, num_seeds=num_seeds
    )
    config = config.resolved(num_examples=NUM_EXAMPLES)
    measurement = engine._Measurement(
        config, Path("nowhere"), Pool(), StudyOptions(), NUM_EXAMPLES, folder.INDEPENDENT
    )
    measurement.goals = GOALS
    measurement.start = Start(1.0, 1.0, world.critical)
    monkeypatch.setattr(measurement.tasks, "wait", wait)
    first = measurement.first_size
    budget = config.epochs * math.ceil(NUM_EXAMPLES / first)
    measurement._begin(first, 0, measurement._first_rate(), budget)
    measurement.loop.run()
    total = clock[0]
    return [(at / total, left, total - at) for at, left in seen]
