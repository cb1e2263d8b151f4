"""Where a monitor's numbers go: one small protocol, and adapters for four loggers.

logger = TensorBoardLogger("runs/first")
for step, batch in enumerate(batches):
    ...
    if monitor.update():
        logger.log(named(monitor.scalars()), step)
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from noisescale.errors import SettingError

PREFIX = "noise_scale/"  # of every name, as in the integrations


class Logger(Protocol):
    """What takes numbers at a step; anything with this method is one."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Writes numbers down.

        Args:
            values: by name; nan where something is not resolved.
            step: the number of updates so far.
        """


def named(scalars: Mapping[str, float]) -> dict[str, float]:
    """A monitor's `scalars` under the standard names, as noise_scale/simple.

    Args:
        scalars: of `NoiseScaleMonitor` or `NormLayerMonitor`.
    """
    return {PREFIX + name: value for name, value in scalars.items()}


class TensorBoardLogger:
    """Into event files for TensorBoard: pip install 'noisescale[tensorboard]'.

    Args:
        folder: of the event files, or a SummaryWriter of your own.
    """

    def __init__(self, folder: str | Path | Any) -> None:
        self._writer: Any = folder
        if isinstance(folder, str | Path):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder))

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in _finite(values).items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WandbLogger:
    """Into a run of Weights & Biases: pip install 'noisescale[wandb]'.

    Args:
        run: what wandb.init returned. Log the training's own numbers of a step with the same step.
    """

    def __init__(self, run: Any) -> None:
        self._run = run

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(_finite(values), step=step)


class MLflowLogger:
    """Into a run of MLflow: pip install 'noisescale[mlflow]'.

    Args:
        run_id: of a run; None: the active one.
    """

    def __init__(self, run_id: str | None = None) -> None:
        self._run_id = run_id

    def log(self, values: Mapping[str, float], step: int) -> None:
        import mlflow

        mlflow.log_metrics(_finite(values), step=step, run_id=self._run_id)


class CSVLogger:
    """Into a table, a row for each step, empty where something is not resolved.

    Args:
        path: of a new file, whose columns are those of the first row.

    Raises:
        SettingError: a file that is there already, or a row with other names than the first.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._names: list[str] = []
        if self._path.exists():
            raise SettingError(f"{path} is there already: give the name of a new file")

    def log(self, values: Mapping[str, float], step: int) -> None:
        names = list(values)
        if self._names and names != self._names:
            raise SettingError(
                f"{', '.join(names)}: the table's columns are {', '.join(self._names)}; give each "
                "set of numbers a table of its own"
            )
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file)
            if not self._names:
                self._names = names
                writer.writerow(["step", *names])
            cells = [value if math.isfinite(value) else "" for value in values.values()]
            writer.writerow([step, *cells])


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    """Without what is not resolved, of which most loggers make a broken line or an error."""
    return {name: value for name, value in values.items() if math.isfinite(value)}
