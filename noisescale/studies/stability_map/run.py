"""A sweep: its cells on an executor as the searches ask for them, then its tables, picture and summary."""

from __future__ import annotations

import math
import time
from collections import Counter
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from noisescale.errors import NoisescaleError, RunFolderError, SettingError
from noisescale.problems.data.splits import num_training_examples
from noisescale.statistics.stability_curves import StabilityConstants
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.executors import given_or_local
from noisescale.studies.jobs.folder import CELL_FOLDER, claim
from noisescale.studies.jobs.tasks import Tasks
from noisescale.studies.stability_map.cell_run import read_cell, run_cell
from noisescale.studies.stability_map.config import BatchSize, SweepConfig
from noisescale.studies.stability_map.predictions import (
    constants_at,
    lyapunov_at,
    predicted_rates,
    stored_lyapunov,
    with_rates,
)
from noisescale.studies.stability_map.results import SweepResult, write_results
from noisescale.studies.stability_map.search import Search, from_guess, scan_and_bisect, whole_grid
from noisescale.studies.stability_map.tables import cell_row, cells_table, edge_of, in_order
from noisescale.training.config import resolve_batch_size
from noisescale.training.records.folder import finished_runs
from noisescale.training.records.names import file_digest, run_name

SCAN_FACTOR = 4.0  # between neighbouring rates of the first seed's scan, about
CELLS_A_SEED = 3  # that another seed's search takes, about

Key = tuple[BatchSize, int]  # batch size and seed


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """How a sweep is carried out; nothing here changes its results.

    start: the checkpoint whose digest the config names. device, data_dir: where its runs compute and their
    data lie. predict: measure the predicted edge too. console: where progress goes. notes: for every record.
    """

    start: Path | None = None
    device: str = "cpu"
    data_dir: Path | None = None
    predict: bool = True
    console: Console | None = None
    notes: tuple[str, ...] = ()


def run_sweep(
    config: SweepConfig,
    out: Path,
    *,
    executor: Executor | None = None,
    options: SweepOptions | None = None,
) -> SweepResult:
    """The map of `config`, computed in the folder `out` as far as its cells are not there already.

    executor: any of concurrent.futures, left open; None: local processes, one a core. Its workers must see
    `out` under the same path. Each cell is a run folder of its own below `out`/cells, so that a killed
    sweep, started again, runs what is missing, and two at once share the work. More batch sizes, rates or
    seeds may be added; cells of another problem, horizon, optimizer or start are refused with
    RunFolderError. A cell that raises is recorded with its error, and the sweep goes on.

    A script calls it under `if __name__ == "__main__":`, since the local processes import the script.

    SettingError for a batch larger than the training set, and where the options' checkpoint is not the one
    whose digest the config has; Interrupted after SIGINT or SIGTERM.
    """
    options = options or SweepOptions()
    num_examples = num_training_examples(config.problem.dataset, config.problem.num_train)
    for size in config.batch_sizes:
        config.run(size, 1.0, 0, num_examples=num_examples)
    digest = None if options.start is None else file_digest(options.start)
    if digest != config.start:
        raise SettingError(
            f"the start of the config is {config.start!r}, that of the options is {options.start} with the "
            f"digest {digest!r}: give SweepConfig(start=file_digest(path)) and SweepOptions(start=path)"
        )
    claim(out, config.identity())
    with given_or_local(executor) as pool:
        return _Sweep(config, out, pool, options, num_examples).complete()


class _Sweep:
    """A sweep in progress, on an executor."""

    def __init__(
        self,
        config: SweepConfig,
        out: Path,
        pool: Executor,
        options: SweepOptions,
        num_examples: int,
    ) -> None:
        self.config = config
        self.out = out.absolute()  # a worker may be elsewhere
        self.options = options
        self.num_examples = num_examples
        self.rows: dict[tuple[BatchSize, float, int], dict[str, Any]] = {}
        self.searches: dict[Key, Search] = {}
        self.asked: dict[Key, list[int]] = {}  # what each search waits for
        self.pending: dict[Future[Any], tuple[Key, int]] = {}
        self.simulations: dict[BatchSize, Future[Any]] = {}
        self.tasks = Tasks(
            pool, options.console, remaining=self._remaining, num_finished=lambda: len(self.rows)
        )

    def complete(self) -> SweepResult:
        started = time.monotonic()
        with self.tasks:
            constants = self._constants()
            if self.config.lr_min is None or self.config.lr_max is None:
                assert constants is not None
                self.config = with_rates(self.config, constants)
            self._search(constants)
            self._take_others()
            predictions = self._predictions(constants)
        return write_results(
            self.config,
            self.out,
            list(self.rows.values()),
            constants=constants,
            predictions=predictions,
            failures=self.tasks.failures,
            seconds=time.monotonic() - started,
            notes=self.options.notes,
            device=self.options.device,
        )

    @property
    def rates(self) -> list[float]:
        return self.config.learning_rates

    @property
    def predicts(self) -> bool:
        """Whether the predictions, which are about plain SGD, are asked for and apply."""
        training = self.config.training
        plain = training.optimizer == "sgd" and not training.momentum and not training.weight_decay
        return self.options.predict and plain

    def _cell(self, batch_size: BatchSize, learning_rate: float, seed: int) -> Cell:
        training = self.config.run(batch_size, learning_rate, seed, num_examples=self.num_examples)
        return Cell(
            path=self.out / CELL_FOLDER / run_name(self.config.problem, training),
            problem=self.config.problem,
            training=training,
            start=self.options.start and self.options.start.absolute(),
            device=self.options.device,
            data_dir=self.options.data_dir and self.options.data_dir.absolute(),
            notes=self.options.notes,
        )

    def _constants(self) -> StabilityConstants | None:
        """What the predictions, and the default learning rates, are made of."""
        if not self.predicts and self.config.lr_min is not None and self.config.lr_max is not None:
            return None
        self.tasks.progress.activity("curvature at the start")
        future = self.tasks.submit(
            constants_at, self._cell(self.config.batch_sizes[0], 1.0, 0), self.out
        )
        self.tasks.wait({future})
        error = self.tasks.error(future)
        if error is None:
            found: StabilityConstants = future.result()
            return found
        if self.config.lr_min is None or self.config.lr_max is None:
            raise NoisescaleError(
                f"the curvature at the start, by which the learning rates are chosen, cannot be measured "
                f"({error}): give --lr-min and --lr-max"
            ) from error
        self.tasks.failed("the curvature at the start", error)
        return None

    def _search(self, constants: StabilityConstants | None) -> None:
        """Runs what the searches ask for, as their answers come, in an order that does not depend on it."""
        for size in self.config.batch_sizes:
            self._begin(
                size, range(self.config.num_seeds) if self.config.num_lr is not None else range(1)
            )
        self._predict(constants)
        while self.pending:
            for future in self.tasks.wait(set(self.pending)):
                self._take(future)

    def _begin(self, size: BatchSize, seeds: range) -> None:
        """Starts the searches of a batch size and these seeds; in bisection that of seed 0 has then ended."""
        count = len(self.rates)
        for seed in seeds:
            if self.config.num_lr is not None:
                search = whole_grid(count)
            elif seed == 0:
                stride = max(1, min(count - 1, round(_log_ratio(SCAN_FACTOR, self.rates))))
                search = scan_and_bisect(count, stride)
            else:
                search = from_guess(count, self._last_stable(size))
            self.searches[size, seed] = search
            self._ask((size, seed), next(search))

    def _ended(self, size: BatchSize) -> None:
        """Goes on with a batch size, all of whose searches have ended: with the other seeds, or with more."""
        config = self.config
        begun = sum(key[0] == size for key in self.searches)
        wanted = max(begun, config.num_seeds)
        if begun >= config.num_seeds and config.precision is not None:
            rows = [row for row in self.rows.values() if row["batch_size"] == size]
            edge = edge_of(cells_table(rows))
            if math.isfinite(edge.value) and not edge.high <= config.precision * edge.low:
                wanted = min(begun + math.ceil(begun / 2), config.max_seeds)
        self._begin(size, range(begun, wanted))

    def _ask(self, key: Key, indices: list[int]) -> None:
        self.asked[key] = indices
        size, seed = key
        for index in indices:
            future = self.tasks.submit(run_cell, self._cell(size, self.rates[index], seed))
            self.pending[future] = (key, index)

    def _take(self, future: Future[Any]) -> None:
        """Records a finished cell and, where its search has all it asked for, goes on with it."""
        key, index = self.pending.pop(future)
        (size, seed), rate = key, self.rates[index]
        error = self.tasks.error(future)
        if error is None:
            row = cell_row(future.result().summary, from_checkpoint=self.config.start is not None)
            self.tasks.progress.cell(size, future.result().summary["seconds"])
        else:
            row = {"batch_size": size, "learning_rate": rate, "seed": seed}
            row["error"] = self.tasks.failed(f"B = {size}, lr {rate:g}, seed {seed}", error)
        self.rows[size, rate, seed] = row
        answers = [self.rows.get((size, self.rates[one], seed)) for one in self.asked[key]]
        if any(answer is None for answer in answers):
            return
        outcomes = [
            None if answer["error"] else bool(answer["unstable"]) for answer in answers if answer
        ]
        try:
            self._ask(key, self.searches[key].send(outcomes))
        except StopIteration:
            del self.asked[key]
            if not any(other == size for other, _ in self.asked):
                self._ended(size)

    def _last_stable(self, size: BatchSize) -> int:
        """Index of the largest stable rate below every unstable one of seed 0; -1 where there is none."""
        last = -1
        for index, rate in enumerate(self.rates):
            outcome = self.rows.get((size, rate, 0), {}).get("unstable")
            if outcome == 1:
                break
            if outcome == 0:
                last = index
        return last

    def _predict(self, constants: StabilityConstants | None) -> None:
        """Submits the simulations of linearised SGD."""
        if constants is None or not self.predicts:
            return
        for size in self.config.batch_sizes:
            cell = self._cell(size, 1.0, 0)
            resolved = resolve_batch_size(cell.training, self.num_examples)
            self.simulations[size] = self.tasks.submit(
                lyapunov_at, cell, self.out, batch_size=resolved, constants=constants
            )

    def _take_others(self) -> None:
        """Adds the cells that other sweeps have finished in this folder, so that no table loses them."""
        for path in finished_runs(self.out / CELL_FOLDER):
            try:
                row = cell_row(
                    read_cell(path).summary, from_checkpoint=self.config.start is not None
                )
            except RunFolderError as error:
                self.tasks.failed(str(path), error)
            else:
                self.rows.setdefault((row["batch_size"], row["learning_rate"], row["seed"]), row)

    def _predictions(
        self, constants: StabilityConstants | None
    ) -> dict[BatchSize, dict[str, float]]:
        """The predicted edges of every batch size there is a cell of, none without constants."""
        if constants is None or not self.predicts:
            return {}
        found = {}
        if not all(future.done() for future in self.simulations.values()):
            self.tasks.progress.activity("simulating linearised SGD")
        for size in in_order(size for size, _, _ in self.rows):
            number = self.num_examples if isinstance(size, str) else size
            simulated = stored_lyapunov(self.out, number)
            if (future := self.simulations.get(size)) is not None:
                self.tasks.wait({future})
                error = self.tasks.error(future)
                if error is not None:
                    self.tasks.failed(f"the simulation of linearised SGD at B = {size}", error)
                simulated = future.result() if error is None else None
            found[size] = predicted_rates(
                constants, simulated, batch_size=number, population_size=self.num_examples
            )
        return found

    def _remaining(self) -> dict[BatchSize, int]:
        """How many cells of each batch size are still to be run, about."""
        left = Counter(key[0] for key, _ in self.pending.values())
        if self.config.num_lr is None and self.searches:
            for size in self.config.batch_sizes:
                begun = sum(key[0] == size for key in self.searches)
                left[size] += CELLS_A_SEED * max(self.config.num_seeds - begun, 0)
        return dict(left)


def _log_ratio(factor: float, rates: list[float]) -> float:
    """How many steps of the grid make this factor."""
    if len(rates) < 2:
        return 1.0
    return math.log(factor) * (len(rates) - 1) / math.log(rates[-1] / rates[0])
