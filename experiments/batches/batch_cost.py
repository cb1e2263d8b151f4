"""What changing the batch size costs, and a full batch's seconds and memory.

Changing: steps of 784–256–256–10 on MNIST at B = 64, against steps at 48 and 80 in turn, changed
every 100, 10 or 1 steps. The examples come from tensors beside the model (`Batches`, a gather of
rows), or from a DataLoader with 0 or 2 workers, which is built anew at each change or given a batch
sampler whose size can be set. All in each round, one after the other, so that rounds are blocks.

Full batch: seconds, MiB and the update of one step at B = 64, …, 60,000, the gradient accumulated
over chunks of 4,096 examples (as `noisescale train` does) or in one pass.

Primary statistic: milliseconds that a change adds, k·(seconds a step changed every k − seconds a
step at B = 64), the median over rounds with the interval of its order statistics; for each source
of the examples, at k = 10. Of the full batch: seconds a step at B = 60,000 over an epoch's at 64.
"""

from __future__ import annotations

import copy
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from experiments.resources import peak_bytes, seconds
from experiments.runs import Unit, unit_experiment
from noisescale import ProblemConfig, TrainConfig
from noisescale.problems.problem import Examples
from noisescale.problems.sampling import Batches
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.jobs.short_run import LossCurve
from noisescale.training.trainer import Training

PROBLEM = ProblemConfig(dataset="mnist", width=256)
BATCH_SIZE = 64
IN_TURN = (48, 80)  # 64 on average, so that as many examples are read
EVERY = (None, 100, 10, 1)  # steps between two changes; None: one size
STEPS = 200  # timed, a change among them at the least
# where each change builds a loader, and may start processes, so that none draws on a full queue
STEPS_OF_REBUILT = {None: 200, 100: 200, 10: 100, 1: 20}
WORKERS = (0, 2)
WARM_UP = 5  # batches before the clock starts: a loader's workers are up by then
LEARNING_RATE = 0.1
FULL_BATCHES = (64, 256, 1024, 4096, 16384, 60_000)
# timed steps of a full batch in a round, whose median counts: three, and of small ones
# as many as use 65,536 examples, 100 at most
REPEATS, FEWEST_EXAMPLES = 3, 65_536
SCALES: dict[str, dict[str, Any]] = {
    "quick": {"rounds": 2, "sizes": (64, 4096)},
    "full": {"rounds": 12, "sizes": FULL_BATCHES},
}
Batch = Sequence[Tensor]  # inputs (B, …), targets (B,)


class SettableBatches(Sampler[list[int]]):
    """Lists of indices without end, of as many as `batch_size` says when a list is asked for."""

    def __init__(self, num_examples: int, *, seed: int) -> None:
        self.batches = Batches(num_examples, seed=seed)
        self.batch_size = BATCH_SIZE

    def __iter__(self) -> Iterator[list[int]]:
        while True:
            yield self.batches.take(self.batch_size).tolist()


def sizes_of(every: int | None) -> Iterator[int]:
    """The batch size of each step: always the same, or two in turn, changed every so many steps."""
    while True:
        for size in IN_TURN if every else (BATCH_SIZE,):
            yield from [size] * (every or 1)


def from_tensors(examples: Examples, every: int | None, seed: int) -> Iterator[Batch]:
    """Rows gathered from the tensors, where the model is."""
    batches = Batches(examples.num_examples, seed=seed, device=examples.inputs.device)
    for size in sizes_of(every):
        indices = batches.take(size)
        yield examples.inputs[indices], examples.targets[indices]


def from_host(
    examples: Examples, every: int | None, seed: int, *, pinned: bool, asynchronous: bool
) -> Iterator[Batch]:
    """Rows gathered on the host and copied to the GPU."""
    batches = Batches(examples.num_examples, seed=seed)
    for size in sizes_of(every):
        indices = batches.take(size)
        parts = [examples.inputs[indices], examples.targets[indices]]
        parts = [part.pin_memory() for part in parts] if pinned else parts
        yield [part.to("cuda", non_blocking=asynchronous) for part in parts]


def from_rebuilt_loaders(
    examples: Examples, every: int | None, seed: int, *, workers: int
) -> Iterator[Batch]:
    """A DataLoader's batches, a new loader at each change and after each epoch."""
    dataset = TensorDataset(examples.inputs, examples.targets)
    generator = torch.Generator().manual_seed(seed)
    current = 0
    batches: Iterator[Batch] = iter(())
    for size in sizes_of(every):
        batch: Batch | None = next(batches, None) if size == current else None
        if batch is None:
            current = size
            batches = iter(
                DataLoader(dataset, size, shuffle=True, num_workers=workers, generator=generator)
            )
            batch = next(batches)
        yield batch


def from_settable_loader(
    examples: Examples, every: int | None, seed: int, *, workers: int
) -> Iterator[Batch]:
    """A DataLoader's batches, of the size that its sampler was last told.

    With workers that is heard late, by the lists of indices that they have been sent already.
    """
    sampler = SettableBatches(examples.num_examples, seed=seed)
    dataset = TensorDataset(examples.inputs, examples.targets)
    batches = iter(DataLoader(dataset, batch_sampler=sampler, num_workers=workers))
    for size in sizes_of(every):
        sampler.batch_size = size
        yield next(batches)


def sources(device: str) -> dict[tuple[str, str], Any]:
    """Where batches come from and how their size is changed, by both names."""
    found: dict[tuple[str, str], Any] = {("tensors", "slice"): from_tensors}
    for workers in WORKERS:
        name = f"loader, {workers} workers"
        found[name, "rebuild"] = partial(from_rebuilt_loaders, workers=workers)
        found[name, "sampler"] = partial(from_settable_loader, workers=workers)
    if device == "cuda":
        for name, pinned, asynchronous in (
            ("pageable", False, False),
            ("pinned", True, False),
            ("pinned, non-blocking", True, True),
        ):
            found[name, "slice"] = partial(from_host, pinned=pinned, asynchronous=asynchronous)
    return found


def time_changes(cell: Cell, training: Training, curve: LossCurve) -> dict[str, Any]:
    """A round: seconds of every source of batches, at one size and changed every so many steps."""
    seed = cell.training.seed
    load = os.getloadavg()[0]  # of the minute before, this experiment's own work included
    examples = training.examples
    assert isinstance(examples, Examples)
    on_host = examples.to("cpu")
    rows = []
    for (source, way), make in sources(cell.device).items():
        for every in EVERY:
            steps = STEPS_OF_REBUILT[every] if way == "rebuild" else STEPS
            batches = make(examples if source == "tensors" else on_host, every, seed)
            took = _seconds_of(batches, steps, _plain_step(training, cell.device))
            rows.append(_row(source, way, every, steps, took))
            batches.close()  # and with it a loader's workers
    for every in EVERY:
        rows.append(_row("noisescale", "slice", every, STEPS, _trainer_seconds(training, every)))
    return {"rows": rows, "load": load, **_identity(cell)}


def _seconds_of(batches: Iterator[Batch], steps: int, step: Callable[[Batch], None]) -> float:
    """Of so many steps, after a few whose time is not counted."""

    def advance(count: int) -> None:
        for batch in islice(batches, count):
            step(batch)

    advance(WARM_UP)
    return seconds(lambda: advance(steps))


def _row(source: str, way: str, every: int | None, steps: int, took: float) -> dict[str, Any]:
    return {"source": source, "way": way, "every": every or 0, "steps": steps, "seconds": took}


def _plain_step(training: Training, device: str) -> Callable[[Batch], None]:
    """The customary update of a copy of the model on a batch, from wherever that lies."""
    model = copy.deepcopy(training.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def step(batch: Batch) -> None:
        inputs, targets = (part.to(device) for part in batch)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return step


def _trainer_seconds(training: Training, every: int | None) -> float:
    """Of the package's own steps, its updates in place (on a GPU as recorded graphs)."""
    sizes = sizes_of(every)
    own = Training(training.problem, replace(training.config, batch_size=BATCH_SIZE))

    def advance(count: int) -> None:
        for _ in islice(own, count):
            own.batch_size = next(sizes)

    advance(WARM_UP)
    return seconds(lambda: advance(STEPS))


def time_full_batches(
    cell: Cell, training: Training, curve: LossCurve, *, sizes: tuple[int, ...]
) -> dict[str, Any]:
    """A round: seconds, MiB and exactness of one step, accumulated in chunks and in one pass."""
    load = os.getloadavg()[0]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        updates: dict[str, Tensor] = {}
        for way in ("accumulated", "one pass"):
            own = Training(training.problem, replace(cell.training, batch_size=size))
            start = nn.utils.parameters_to_vector(own.model.parameters()).detach().clone()
            work = partial(_accumulated, own) if way == "accumulated" else partial(_one_pass, own)
            took = peak_bytes(work, device=cell.device)  # its first step, from the same parameters
            end = nn.utils.parameters_to_vector(own.model.parameters()).detach()
            updates[way] = (end - start).double()
            repeats = max(REPEATS, min(FEWEST_EXAMPLES // size, 100))
            times = [seconds(work) for _ in range(repeats)]
            rows.append(
                {
                    "batch_size": size,
                    "way": way,
                    "seconds": statistics.median(times),
                    "mebibytes": took / 2**20,
                }
            )
        difference = (updates["accumulated"] - updates["one pass"]).norm()
        rows[-2]["difference"] = float(difference / updates["one pass"].norm())
        rows[-1]["difference"] = 0.0
    return {"rows": rows, "load": load, **_identity(cell)}


def _accumulated(training: Training) -> None:
    """One step of the package's own."""
    next(iter(training))


def _one_pass(training: Training) -> None:
    """One step of the same examples in a single pass."""
    indices = training.batches.take(training.batch_size)
    examples = training.examples.part(indices)
    loss = training.problem.loss(training.model(examples.inputs), examples.targets).mean()
    loss.backward()
    training.optimizer.step()
    training.optimizer.zero_grad()


def _identity(cell: Cell) -> dict[str, Any]:
    """What every summary of a run has."""
    return {
        "batch_size": cell.training.batch_size,
        "learning_rate": cell.training.learning_rate,
        "seed": cell.training.seed,
        "steps": 0,
    }


def units(scale: str, out: Path) -> Iterator[list[Unit]]:
    """Rounds, each of both measurements."""
    settings = SCALES[scale]
    yield [
        Unit(
            folder=f"{name}-{seed:02}",
            problem=PROBLEM,
            training=TrainConfig(
                batch_size=BATCH_SIZE, learning_rate=LEARNING_RATE, epochs=1000, seed=seed
            ),
            course=course,
        )
        for seed in range(settings["rounds"])
        for name, course in (
            ("changes", time_changes),
            ("full", partial(time_full_batches, sizes=settings["sizes"])),
        )
    ]


batch_cost = unit_experiment(
    "batch_cost",
    units,
    scales={"quick": "two rounds", "full": "12 rounds, sizes up to 60,000"},
    help="What changing the batch size costs, and full batches.",
    one_process=True,
)
