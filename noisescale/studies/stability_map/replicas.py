"""Several runs of one batch size as one vmapped program, since one leaves a GPU idle."""

from __future__ import annotations

import copy
import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from noisescale.problems.config import ProblemConfig
from noisescale.problems.problem import Problem, as_examples
from noisescale.problems.sampling import Batches
from noisescale.studies.jobs.cell import Cell, cell_problem, cell_record
from noisescale.studies.jobs.short_run import LossCurve, ShortRun, write_run
from noisescale.studies.stability_map.cell_run import (
    LOOKED_AT,
    Ends,
    cell_summary,
    look_due,
    read_cell,
    run_cell,
)
from noisescale.training.config import TrainConfig, resolve_batch_size
from noisescale.training.records.folder import RunFolder, folder_state
from noisescale.training.trainer import UNCHECKED_LOSSES

MOST_REPLICAS = 16  # which fill a GPU at small batches; more wait for the slowest of them
LARGEST_BATCH = 256  # from which on a single run fills a GPU
GATHERING = 0.05  # seconds in which tasks that belong together arrive


class ReplicaTraining:
    """R runs of plain or heavy-ball SGD that differ in rate, seed and initial parameters alone.

    Each update is that of `Training`, up to rounding, for all replicas in one call of
    `torch.func.vmap` over stacked parameters (R, *shape), compiled on a GPU. problems: one a
    replica, on the same examples. configs: alike but for learning_rate and seeds.

    step: updates made. diverged_at_step: of each replica, None as long as its losses are finite; on
    a GPU these are looked at every 64 updates. A diverged replica is carried along, to no effect on
    the others.
    """

    def __init__(self, problems: Sequence[Problem], configs: Sequence[TrainConfig]) -> None:
        self.config = configs[0]
        self.examples = as_examples(problems[0].train)
        self.device = self.examples.inputs.device
        self.batch_size = resolve_batch_size(self.config, self.examples.num_examples)
        models = [copy.deepcopy(problem.model).train() for problem in problems]
        self._params, self._buffers = stack_module_state(models)
        self._model = models[0]
        self._loss = problems[0].loss
        rates = [config.learning_rate for config in configs]
        self._rates = torch.tensor(rates, dtype=torch.float64, device=self.device)
        self._velocities = {name: torch.zeros_like(param) for name, param in self._params.items()}
        self._orders = [
            Batches(self.examples.num_examples, seed=config.seed_of_order, device=self.device)
            for config in configs
        ]
        self._gradients = vmap(grad_and_value(self._mean_loss))
        if self.device.type == "cuda":
            self._gradients = torch.compile(self._gradients, dynamic=False)
        self.step = 0
        self.examples_seen = 0
        self.diverged_at_step: list[int | None] = [None] * len(configs)
        self._losses: list[Tensor] = []  # (R,) of the latest updates, not yet looked at

    @property
    def finished(self) -> bool:
        """Whether the horizon is reached, or all replicas have diverged."""
        config = self.config
        return (
            None not in self.diverged_at_step
            or self.examples_seen >= config.epochs * self.examples.num_examples
            or (config.max_steps is not None and self.step >= config.max_steps)
        )

    @property
    def num_steps(self) -> int:
        """Updates until the horizon."""
        config = self.config
        steps = config.epochs * math.ceil(self.examples.num_examples / self.batch_size)
        return steps if config.max_steps is None else min(steps, config.max_steps)

    @torch.no_grad()
    def update(self) -> None:
        """One update of every replica."""
        indices = torch.stack([order.take(self.batch_size) for order in self._orders])  # (R, B)
        inputs, targets = self.examples.inputs[indices], self.examples.targets[indices]
        gradients, losses = self._gradients(self._params, self._buffers, inputs, targets)
        for name, param in self._params.items():
            change = gradients[name]
            if self.config.weight_decay:
                change = change + self.config.weight_decay * param
            if self.config.momentum:
                change = self._velocities[name].mul_(self.config.momentum).add_(change)
            rates = self._rates.reshape(-1, *[1] * (param.dim() - 1))
            param.sub_(rates.to(param) * change)
        self._losses.append(losses)
        self.step += 1
        self.examples_seen += indices.shape[1]
        if self.device.type == "cpu" or len(self._losses) >= UNCHECKED_LOSSES or self.finished:
            self.check_losses()

    def check_losses(self) -> None:
        """Looks at the losses since the last look, a wait for the device; notes divergences."""
        if not self._losses:
            return
        finite = torch.stack(self._losses).isfinite().T.tolist()  # (R, steps)
        first = self.step - len(self._losses) + 1
        self._losses.clear()
        for replica, row in enumerate(finite):
            if self.diverged_at_step[replica] is None and False in row:
                self.diverged_at_step[replica] = first + row.index(False)

    @torch.no_grad()
    def model(self, replica: int) -> nn.Module:
        """A model with this replica's parameters, the same object at every call."""
        for name, param in self._model.named_parameters():
            param.copy_(self._params[name][replica])
        return self._model

    def _mean_loss(
        self, params: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> Tensor:
        outputs = functional_call(self._model, (params, buffers), (inputs,))
        return self._loss(outputs, targets).mean()


def run_replicas(cells: Sequence[Cell]) -> list[ShortRun]:
    """The cells' runs, those of `run_cell` up to rounding, computed together; see `alike`."""
    with ExitStack() as held:
        # in one order, so that no two processes wait for each other
        for cell in sorted(cells, key=lambda cell: cell.path):
            held.enter_context(RunFolder(cell.path, cell_record(cell), wait=True))
        missing = [
            cell for cell in cells if folder_state(cell.path, cell_record(cell)) != "finished"
        ]
        if missing:
            _run_held(missing)
    return [read_cell(cell.path) for cell in cells]


def _run_held(cells: Sequence[Cell]) -> None:
    """Runs cells whose folders are held."""
    started = time.perf_counter()
    problems = [cell_problem(cell) for cell in cells]
    training = ReplicaTraining(problems, [cell.training for cell in cells])
    ends = [Ends(problem) for problem in problems]
    curves = [LossCurve(problem, num_examples=LOOKED_AT) for problem in problems]
    for curve, problem in zip(curves, problems, strict=True):
        curve.look(0, problem.model)
    running = set(range(len(cells)))
    while running:
        training.update()
        due = look_due(training.step, training.num_steps)
        if due or training.finished:
            training.check_losses()
        for replica in sorted(running):
            diverged_at_step = training.diverged_at_step[replica]
            ended = training.finished or diverged_at_step is not None
            if due or ended:
                curves[replica].look(training.step, training.model(replica))
            if ended:
                running.remove(replica)
                cell, curve = cells[replica], curves[replica]
                numbers = cell_summary(
                    cell,
                    problems[replica],
                    ends[replica],
                    curve,
                    training.model(replica),
                    steps=training.step,
                    epochs=training.examples_seen / training.examples.num_examples,
                    diverged_at_step=diverged_at_step,
                )
                seconds = (time.perf_counter() - started) / len(cells)
                write_run(cell, curve, numbers, seconds=seconds)


def alike(cell: Cell) -> tuple[Any, ...] | None:
    """What cells that run together share; None for one that must run alone.

    Alone run adaptive optimizers, Nesterov's momentum, batch normalisation, whose statistics change
    in place, and batches that fill a device.
    """
    training = cell.training
    size = training.batch_size
    alone = (
        training.optimizer != "sgd"
        or training.nesterov
        or not isinstance(cell.problem, ProblemConfig)
        or cell.problem.couples_examples
        or not isinstance(size, int)
        or size > LARGEST_BATCH
    )
    if alone:
        return None
    return (
        cell.problem,
        replace(training, learning_rate=1.0, seed=0, order_seed=None),
        cell.start,
        cell.device,
        cell.fold,
    )


class _Task(NamedTuple):
    future: Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    options: dict[str, Any]


class ReplicaExecutor(Executor):
    """Runs tasks in a thread of this process, up to 16 alike cells that wait as one program."""

    def __init__(self) -> None:
        self._tasks: list[_Task] = []
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._changed:
            self._tasks.append(_Task(future, function, args, kwargs))
            self._changed.notify()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self._changed:
            self._open = False
            if cancel_futures:
                for task in self._tasks:
                    task.future.cancel()
                self._tasks.clear()
            self._changed.notify()
        if wait:
            self._thread.join()

    def _work(self) -> None:
        while group := self._next_group():
            running = [task for task in group if task.future.set_running_or_notify_cancel()]
            if len(running) > 1:
                try:
                    runs = run_replicas([task.arguments[0] for task in running])
                except Exception:  # of one of them perhaps: whose it is shows when each runs alone
                    pass
                else:
                    for task, run in zip(running, runs, strict=True):
                        task.future.set_result(run)
                    continue
            for task in running:
                try:
                    task.future.set_result(task.function(*task.arguments, **task.options))
                except Exception as error:
                    task.future.set_exception(error)

    def _next_group(self) -> list[_Task]:
        """The oldest task and those that can run with it; none once closed and done."""
        with self._changed:
            self._changed.wait_for(lambda: self._tasks or not self._open)
        time.sleep(GATHERING)  # tasks come one by one
        with self._changed:
            kinds = [_kind(task) for task in self._tasks]
            chosen = [
                index
                for index, kind in enumerate(kinds)
                if index == 0 or (kind is not None and kind == kinds[0])
            ][:MOST_REPLICAS]
            group = [self._tasks[index] for index in chosen]
            self._tasks = [task for index, task in enumerate(self._tasks) if index not in chosen]
        return group


def _kind(task: _Task) -> tuple[Any, ...] | None:
    return alike(task.arguments[0]) if task.function is run_cell else None
