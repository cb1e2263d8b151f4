"""A sweep: its cells on an executor as the searches ask for them, then its tables and summary."""

from __future__ import annotations

import math
import time
from collections import Counter
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from noisescale.errors import (
    Interrupted,
    NoisescaleError,
    NotMeasurable,
    RunFolderError,
    SettingError,
)
from noisescale.problems.factory import seeding_notes
from noisescale.statistics.display import counted
from noisescale.statistics.estimate import Estimate
from noisescale.statistics.scores.cross_validation import fold_indices
from noisescale.statistics.stability.curves import StabilityConstants
from noisescale.studies.jobs.cell import Cell, count_examples
from noisescale.studies.jobs.folder import CELL_FOLDER, Orders, claim, ordered
from noisescale.studies.jobs.local import given_or_local
from noisescale.studies.jobs.options import StudyOptions, make_cell, with_notes
from noisescale.studies.jobs.search_loop import (
    Failure,
    Job,
    Search,
    SearchLoop,
    carry_out,
    read_finished,
)
from noisescale.studies.jobs.short_run import ShortRun
from noisescale.studies.jobs.tasks import Tasks
from noisescale.studies.stability_map.cell_run import read_cell, run_cell, stored_cell
from noisescale.studies.stability_map.config import SETTINGS, BatchSize, SweepConfig
from noisescale.studies.stability_map.predictions import (
    constants_at,
    lyapunov_at,
    predicted_rates,
    sharpness_at,
    stored_constants,
    stored_lyapunov,
    with_rates,
)
from noisescale.studies.stability_map.results import Outcome, SweepResult, write_results
from noisescale.studies.stability_map.search import (
    RateSearch,
    from_guess,
    scan_and_bisect,
    whole_grid,
)
from noisescale.studies.stability_map.tables import cell_row, cells_table, edge_of_cells, in_order
from noisescale.training.config import resolve_batch_size
from noisescale.training.records.names import file_digest, run_name
from noisescale.training.updates.muon import check_muon

SCAN_FACTOR = (
    4.0  # between the rates of seed 0's scan, about: two or three bisections of them follow
)
CELLS_A_SEED = 3  # about, that another seed's search takes: the edge is near where seed 0 has it


@dataclass(frozen=True, kw_only=True, repr=False)
class SweepOptions(StudyOptions):
    """How a sweep is carried out; nothing here changes its cells.

    Attributes:
        device: where the runs compute, "cpu" or "cuda".
        data_dir: where data sets lie; None: in $NOISESCALE_DATA, else in the user's cache.
        console: where progress and failures are printed; None: nowhere.
        notes: for the record of the sweep and of each of its cells.
        pictures: whether the map is drawn at the end, from the tables.
        start: the checkpoint whose digest is the config's `start`; None: the runs start from
            initialisation.
        predict: whether the predicted edges are measured too, as far as they apply: they are of
            plain SGD.
    """

    start: Path | str | None = None
    predict: bool = True


def run_sweep(
    config: SweepConfig,
    out: Path | str,
    *,
    executor: Executor | None = None,
    options: StudyOptions | None = None,
) -> SweepResult:
    """The map of `config`, computed as far as the folder `out` does not hold its cells already.

    Each cell is a run folder of its own below `out`/cells, so that a killed sweep, started again,
    runs what is missing, and two at once share the work. More batch sizes, rates or seeds may be
    added. A cell that raises is recorded with its error, and the sweep goes on.

    A script calls it under `if __name__ == "__main__":`, since the local processes import the
    script.

    Args:
        config: the map; cells already in `out` must be of the same problem, horizon, optimizer and
            start, and are kept.
        out: the results folder.
        executor: any of concurrent.futures, left open; None: local processes, one a core. Its
            workers must see `out` under the same path.
        options: SweepOptions, or those of any study; None: the defaults.

    Returns:
        The cells, the measured edges beside the predicted ones, and the content of summary.json.

    Raises:
        SettingError: a batch larger than the training set, or a checkpoint in the options whose
            digest is not the config's `start`.
        NoisescaleError: no learning rates are given, and the curvature that would tell them cannot
            be measured.
        RunFolderError: `out` holds something else.
        Interrupted: a SIGINT or SIGTERM came; what is finished is kept. While linearised SGD was
            simulated, `found` is the result without the rest of that.
    """
    out = Path(out)
    if not isinstance(options, SweepOptions):
        options = SweepOptions(**vars(options or StudyOptions()))
    check_muon(config.training)
    num_examples = count_examples(config.problem)
    if config.folds is not None:
        num_examples -= max(map(len, fold_indices(num_examples, config.folds)))
    # of runs from a checkpoint no seed draws the start
    several = config.num_seeds if config.start is None else 1
    options = with_notes(options, seeding_notes(config.problem, num_seeds=several))
    for size in config.batch_sizes:
        config.run(size, 1.0, 0, num_examples=num_examples)
    digest = None if options.start is None else file_digest(options.start)
    if digest != config.start:
        raise SettingError(
            f"the start of the config is {config.start!r}, that of the options is {options.start} "
            f"with the digest {digest!r}: give SweepConfig(start=file_digest(path)) and "
            "SweepOptions(start=path)"
        )
    orders = claim(out, config.identity(), settings=SETTINGS)
    with given_or_local(executor) as pool:
        return _Sweep(config, out, pool, options, num_examples, orders).complete()


class _Sweep:
    """A sweep in progress, on an executor.

    rows: of cells.csv, by batch size, rate and seed. known: the folders they are of. num_begun,
    num_open: of each batch size's searches, one for each seed, how many have begun, and how many of
    these have not ended.
    """

    def __init__(
        self,
        config: SweepConfig,
        out: Path,
        pool: Executor,
        options: SweepOptions,
        num_examples: int,
        orders: Orders,
    ) -> None:
        self.config = config
        self.out = out.absolute()  # a worker may be elsewhere
        self.options = options
        self.num_examples = num_examples
        self.orders = orders
        self.rows: dict[tuple[BatchSize, float, int], dict[str, Any]] = {}
        self.known: set[Path] = set()
        self.num_begun: Counter[BatchSize] = Counter()
        self.num_open: Counter[BatchSize] = Counter()
        self.simulations: dict[BatchSize, Future[Any]] = {}
        self.tasks = Tasks(pool, options.console)
        self.loop = SearchLoop(self.tasks, to_come=self._to_come)

    def complete(self) -> SweepResult:
        started = time.monotonic()
        with self.tasks:
            constants = self._constants()
            if not self._has_rates:
                config = self.config
                is_free = config.lr_min is None and config.lr_max is None
                self.config = with_rates(config, self._sharpness(constants) if is_free else None)
            first_seeds = self.config.num_seeds if self.config.num_lr is not None else 1
            for size in self.config.batch_sizes:
                alike = self.config.seeds_alike(size, num_examples=self.num_examples)
                self._begin(size, 1 if alike else first_seeds)
            self._simulate(constants)
            self.loop.run()
            self._take_others()
            stopped = None
            try:
                predictions = self._predictions(constants)
            except Interrupted as signal:
                stopped = signal
                self.simulations = {}
                predictions = self._predictions(constants)  # as far as they are in the folder
        outcome = Outcome(
            rows=list(self.rows.values()),
            constants=constants,
            predictions=predictions,
            num_examples=self.num_examples,
            failures=self.tasks.failures,
            seconds=time.monotonic() - started,
        )
        result = write_results(self.config, self.out, outcome, self.options)
        if stopped is not None:
            stopped.found = result
            raise stopped
        return result

    @property
    def rates(self) -> list[float]:
        return self.config.learning_rates

    @property
    def predicts(self) -> bool:
        """Whether the predictions, which are about plain SGD, are wanted and apply."""
        training = self.config.training
        plain = training.optimizer == "sgd" and not training.momentum and not training.weight_decay
        return self.options.predict and plain

    @property
    def _has_rates(self) -> bool:
        return self.config.lr_min is not None and self.config.lr_max is not None

    def _constants(self) -> StabilityConstants | None:
        """What the predictions are made of; None where they are not wanted, or cannot be had."""
        if not self.predicts:
            return None
        try:
            if (stored := stored_constants(self.out)) is not None:
                return stored
        except RunFolderError:
            pass  # met again below, where the map goes on without them
        self.tasks.progress.activity("measuring the curvature at the start")
        cell = self._cell(self.config.batch_sizes[0], 1.0, 0)
        future = self.tasks.submit(constants_at, cell, self.out)
        error = self.tasks.error(future)
        if error is None:
            constants: StabilityConstants = future.result()
            return constants
        if isinstance(error, NotMeasurable):  # which no setting would change
            self.options = with_notes(self.options, (f"no edge is predicted: {error}",))
        else:
            self.tasks.failed("the curvature at the start", error)
        return None

    def _sharpness(self, constants: StabilityConstants | None) -> float | None:
        """λ, by which the learning rates are chosen; None of an adaptive optimizer."""
        if self.config.training.is_adaptive:
            return None
        if constants is not None:
            return constants.sharpness
        self.tasks.progress.activity("measuring the sharpness at the start")
        cell = self._cell(self.config.batch_sizes[0], 1.0, 0)
        future = self.tasks.submit(sharpness_at, cell, self.out)
        if (error := self.tasks.error(future)) is not None:
            raise NoisescaleError(
                "the curvature at the start, by which the learning rates are chosen, cannot be "
                f"measured ({error}): give --lr-min and --lr-max"
            ) from error
        return float(future.result())

    def _begin(self, size: BatchSize, num_seeds: int) -> None:
        """Starts the searches of a batch size for the seeds up to this number."""
        seeds = range(self.num_begun[size], num_seeds)
        self.num_begun[size] += len(seeds)
        self.num_open[size] += len(seeds)
        for seed in seeds:
            self.loop.begin(self._locate(size, seed))

    def _locate(self, size: BatchSize, seed: int) -> Search[ShortRun, None]:
        """Runs the cells that the search of a batch size and seed asks for."""

        def job(index: int) -> Job[ShortRun]:
            rate = self.rates[index]
            name = f"B = {size}, lr {rate:g}, seed {seed}"
            cell = self._cell(size, rate, seed)
            return Job(run_cell, cell, name, kind=size, work=self._work(size), stored=stored_cell)

        def unstable(index: int, run: ShortRun | Failure) -> bool | None:
            rate = self.rates[index]
            row: dict[str, Any] = {"batch_size": size, "learning_rate": rate, "seed": seed}
            if isinstance(run, Failure):
                self.rows[size, rate, seed] = row | {"error": run.reason}
                return None
            row = cell_row(run.summary, from_checkpoint=self.config.start is not None)
            self.rows[size, rate, seed] = row
            self.known.add(run.path)
            return bool(row["unstable"])

        yield from carry_out(self._rates_to_try(size, seed), job, unstable)
        self.num_open[size] -= 1
        if self.num_open[size] == 0:
            self._begin(size, self._seeds_wanted(size))

    def _rates_to_try(self, size: BatchSize, seed: int) -> RateSearch:
        """All rates or, in bisection, a scan with seed 0 and from its edge for the other seeds."""
        num_rates = len(self.rates)
        if self.config.num_lr is not None:
            return whole_grid(num_rates)
        if seed == 0:
            stride = round(_log_ratio(SCAN_FACTOR, self.rates))
            return scan_and_bisect(num_rates, max(1, min(num_rates - 1, stride)))
        return from_guess(num_rates, self._last_stable(size))

    def _seeds_wanted(self, size: BatchSize) -> int:
        """How many seeds a batch size should have once the searches begun for it have ended."""
        config, begun = self.config, self.num_begun[size]
        if config.seeds_alike(size, num_examples=self.num_examples):
            return begun
        if begun < config.num_seeds or config.precision is None:
            return max(begun, config.num_seeds)
        rows = [row for row in self.rows.values() if row["batch_size"] == size]
        edge = edge_of_cells(cells_table(rows)).rate
        precise = edge.high <= config.precision * edge.low
        if precise or not math.isfinite(edge.value):
            return begun
        return min(begun + math.ceil(begun / 2), config.max_seeds)

    def _last_stable(self, size: BatchSize) -> int:
        """Index of the largest stable rate below every unstable one of seed 0; -1 for none."""
        last = -1
        for index, rate in enumerate(self.rates):
            outcome = self.rows.get((size, rate, 0), {}).get("unstable")
            if outcome == 1:
                break
            if outcome == 0:
                last = index
        return last

    def _simulate(self, constants: StabilityConstants | None) -> None:
        """Submits the simulations of linearised SGD."""
        if constants is None or not self.predicts:
            return
        for size in self.config.batch_sizes:
            cell = self._cell(size, 1.0, 0)
            batch_size = resolve_batch_size(cell.training, self.num_examples)
            with suppress(RunFolderError):  # of a damaged one, which the worker meets and names
                if stored_lyapunov(self.out, batch_size) is not None:
                    continue
            self.simulations[size] = self.tasks.submit(
                lyapunov_at, cell, self.out, batch_size=batch_size, constants=constants
            )

    def _predictions(
        self, constants: StabilityConstants | None
    ) -> dict[BatchSize, dict[str, float]]:
        """The predicted edges of every batch size there is a cell of, none without constants."""
        if constants is None or not self.predicts:
            return {}
        waiting = [future for future in self.simulations.values() if not future.done()]
        if waiting:
            self.tasks.progress.log(
                f"Optional, {counted(len(waiting), 'simulation')} of linearised SGD, for the "
                "Lyapunov column. Ctrl-C prints the map without the rest of them; --no-predict "
                "leaves all predictions out."
            )
            self.tasks.progress.activity("simulating linearised SGD")
        predictions = {}
        for size in in_order(size for size, _, _ in self.rows):
            batch_size = self.num_examples if isinstance(size, str) else size
            predictions[size] = predicted_rates(
                constants,
                self._simulated(size, batch_size),
                batch_size=batch_size,
                population_size=self.num_examples,
            )
        return predictions

    def _simulated(self, size: BatchSize, batch_size: int) -> Estimate | None:
        """The almost-sure threshold: of this sweep's simulation, or of an earlier one in `out`."""
        future = self.simulations.get(size)
        if future is None:
            try:
                return stored_lyapunov(self.out, batch_size)
            except RunFolderError as damaged:
                self.tasks.failed(f"the simulation of linearised SGD at B = {size}", damaged)
                return None
        error = self.tasks.error(future)
        if error is not None:
            self.tasks.failed(f"the simulation of linearised SGD at B = {size}", error)
            return None
        threshold: Estimate = future.result()
        return threshold

    def _cell(self, batch_size: BatchSize, learning_rate: float, seed: int) -> Cell:
        training = self.config.run(batch_size, learning_rate, seed, num_examples=self.num_examples)
        training = ordered(training, self.orders)
        name, fold = run_name(self.config.problem, training), None
        if self.config.folds is not None:
            fold = (seed, self.config.folds)
            name += f"-fold{seed}of{self.config.folds}"
        path = self.out / CELL_FOLDER / name
        cell = make_cell(
            self.options, path, self.config.problem, training, start=self.options.start
        )
        return replace(cell, fold=fold)

    def _take_others(self) -> None:
        """Adds the cells that other sweeps have finished in this folder, so that none is lost."""
        root = self.out / CELL_FOLDER
        for run in read_finished(root, read_cell, self.tasks.failed, known=self.known):
            row = cell_row(run.summary, from_checkpoint=self.config.start is not None)
            key = row["batch_size"], row["learning_rate"], row["seed"]
            if self.rows.get(key, {}).get("error", "-"):  # none here, or one that failed here
                self.rows[key] = row

    def _to_come(self) -> dict[BatchSize, list[float]]:
        """Of each batch size the examples of every cell no search has asked for yet, about."""
        if self.config.num_lr is not None:
            return {}
        return {
            size: [self._work(size)] * (CELLS_A_SEED * max(self.config.num_seeds - begun, 0))
            for size, begun in self.num_begun.items()
            if not self.config.seeds_alike(size, num_examples=self.num_examples)
        }

    def _work(self, size: BatchSize) -> float:
        """The examples that a run sees, unless it diverges."""
        batch_size = self.num_examples if isinstance(size, str) else size
        epochs, max_steps = self.config.horizon.limits(batch_size, self.num_examples)
        most = math.inf if max_steps is None else max_steps * batch_size
        return min(epochs * self.num_examples, most)


def _log_ratio(factor: float, rates: list[float]) -> float:
    """How many steps of the grid make this factor."""
    if len(rates) < 2:
        return 1.0
    return math.log(factor) * (len(rates) - 1) / math.log(rates[-1] / rates[0])
