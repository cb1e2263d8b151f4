"""An executor that needs no processes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from noisescale.studies.critical_batch.runs.goal_run import GoalCell, run_to_goal
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.stability_map.cell_run import run_cell


class Here(Executor):
    """Runs each task as it is submitted, in this thread.

    cells: the runs it was given, those that were there already left out by the study itself.
    fail: which of them fail, with a MemoryError.
    """

    def __init__(self, fail: Callable[[Cell], bool] | None = None) -> None:
        self.cells: list[Cell] = []
        self.fail = fail or (lambda cell: False)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if function in (run_cell, run_to_goal):
            cell = args[0].cell if isinstance(args[0], GoalCell) else args[0]
            self.cells.append(cell)
            if self.fail(cell):
                future.set_exception(MemoryError("no room for this one\nand more"))
                return future
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future
