"""Run folders: written atomically, never by two at once, read back as tidy tables."""

from __future__ import annotations

import json
import math
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from filelock import FileLock, Timeout

from noisescale.errors import RunFolderBusyError, RunFolderError
from noisescale.problems.config import AnyConfig, parse_problem
from noisescale.statistics.estimate import jsonable
from noisescale.training.config import TrainConfig
from noisescale.training.records.tables import TABLES

if TYPE_CHECKING:
    import pandas as pd

CONFIG, SUMMARY = "config.json", "summary.json"
CHECKPOINT, STEP_CHECKPOINTS = "checkpoint.pt", "checkpoints"
PICTURES = ("curves", "confusion", "sharpness", "noise", "batch_size")  # without the format
PICTURE_FORMATS = ("png", "pdf", "svg")
EXPERIMENT = "experiment.json"
# what remains of a run in its folder beside config.json and the step checkpoints; the summary first
_RESULTS = (
    SUMMARY,
    *TABLES,
    *(f"{picture}.{format}" for picture in PICTURES for format in PICTURE_FORMATS),
    CHECKPOINT,
)
_LOCK = ".noisescale.lock"

State = Literal["new", "unfinished", "finished"]


def write_atomically(path: Path, content: bytes) -> None:
    """Puts `content` at `path` as a whole or not at all: temporary name, sync, rename.

    A crash, a kill or a full disk leaves the old file as it was. Raises OSError as the system
    reports it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(_temporary(path.name, secrets.token_hex(4)))
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def write_json(path: Path, content: Any) -> None:
    """`content` as strict JSON: any nan or infinity in it is an error, see `nullable`."""
    write_atomically(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_table(path: Path, table: pd.DataFrame) -> None:
    """`table` as CSV with nan spelt out: an empty cell never stands for a diverged number."""
    write_atomically(path, table.to_csv(index=False, na_rep="nan").encode())


def nullable(scores: dict[str, float]) -> dict[str, float | str | None]:
    """`scores` with every non-finite number as null and the reason beside it, for strict JSON."""
    finite: dict[str, float | str | None] = jsonable(scores)
    reasons = {
        f"{name}_null_because": f"the {name} is {value}, not finite"
        for name, value in scores.items()
        if not math.isfinite(value)
    }
    return finite | reasons


class RunFolder:
    """One run's folder, held against a second writer while it is open as a context.

    Args:
        path: the folder, made when entered.
        config: what config.json is to hold; its "problem" and "training" identify the run. A folder
            that holds another run's config.json, or files but no config.json, is refused with
            RunFolderError; one that another process holds, with RunFolderBusyError.
        force: empty a folder of the results in it first, whatever run they are of.
        wait: until another process has let go of the folder, instead of refusing it.
    """

    def __init__(
        self, path: Path, config: dict[str, Any], *, force: bool = False, wait: bool = False
    ) -> None:
        self.path = path
        self.config = config
        self.force = force
        self.wait = wait

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path / _LOCK)
        try:
            self._lock.acquire(timeout=-1 if self.wait else 0)
        except Timeout:
            raise RunFolderBusyError(
                f"{self.path} is being written by another process: "
                "wait for it or choose another --out"
            ) from None
        try:
            if self.force and (self.path / CONFIG).exists():
                remove_results(self.path)
                write_json(self.path / CONFIG, self.config)
            elif self.state == "new":
                write_json(self.path / CONFIG, self.config)
            _remove_litter(self.path)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        # its file stays: unlinked, it would let a third writer in beside a second
        self._lock.release()

    @property
    def state(self) -> State:
        """How much of this run is there; RunFolderError if it is another's."""
        return folder_state(self.path, self.config)


def folder_state(path: Path, config: dict[str, Any]) -> State:
    """What `path` holds of the run with this `config`; RunFolderError for something else."""
    stored = read_json(path / CONFIG)
    if stored is None:
        entries = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
        # which another process may have written before the folder was listed
        stored = read_json(path / CONFIG)
    if stored is None:
        if strangers := [name for name in entries if not name.startswith(".")]:
            raise RunFolderError(
                f"{path} holds {', '.join(strangers[:3])} but no {CONFIG}, so it is no run folder: "
                "choose an empty or new folder with --out"
            )
        return "new"
    in_folder = [each.to_dict() for each in parse_config(path, stored)]
    given = [each.to_dict() for each in parse_config(path, config)]
    differences = [
        f"{section}.{name} is {old.get(name)!r} there, {value!r} here"
        for section, old, new in zip(("problem", "training"), in_folder, given, strict=True)
        for name, value in new.items()
        if old.get(name) != value
    ]
    if differences:
        raise RunFolderError(
            f"{path} holds another run ({'; '.join(differences)}): "
            "choose another --out, or --force to replace it"
        )
    return "finished" if (path / SUMMARY).exists() else "unfinished"


def parse_config(path: Path, content: dict[str, Any]) -> tuple[AnyConfig, TrainConfig]:
    """The configurations in a config.json's content, fields it lacks at their defaults."""
    try:
        return parse_problem(content["problem"]), TrainConfig.from_dict(content["training"])
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(f"{path / CONFIG} is not a run's configuration: {error}") from error


def remove_results(path: Path) -> None:
    """Deletes what a run has left in its folder, its summary first, but for config.json."""
    for name in _RESULTS:
        (path / name).unlink(missing_ok=True)
    for step_checkpoint in (path / STEP_CHECKPOINTS).glob("step-*.pt"):
        step_checkpoint.unlink()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is none; RunFolderError where it is damaged."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunFolderError(
            f"{path} is not valid JSON ({error}): delete the folder and run again"
        ) from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} holds no JSON object: delete the folder and run again")
    return content


def read_summary(folder: Path) -> dict[str, Any]:
    """A finished run's summary; RunFolderError where it is damaged."""
    summary = read_json(folder / SUMMARY)
    if summary is None or not {"batch_size", "steps", "train", "environment"} <= set(summary):
        raise RunFolderError(f"{folder / SUMMARY} is no run's summary: delete it and run again")
    return summary


def record_experiment(root: Path, *, command: str) -> None:
    """Notes in the folder of an experiment's runs by which command they are made."""
    write_json(root / EXPERIMENT, {"command": command})


def experiment_command(root: Path) -> str:
    """The command noted by `record_experiment`."""
    if (record := read_json(root / EXPERIMENT)) is None:
        raise RunFolderError(
            f"{root} has no {EXPERIMENT}: compute its runs with python -m experiments"
        )
    return str(record["command"])


def finished_runs(root: Path) -> list[Path]:
    """Folders of finished runs at or below `root`, sorted by name."""
    return sorted(summary.parent for summary in root.rglob(SUMMARY))


def _temporary(name: str, writer: str) -> str:
    return f".{name}.{writer}.tmp"


def _remove_litter(path: Path) -> None:
    """Deletes the temporary files of a killed writer, known by the names of a run's files."""
    patterns = [_temporary(name, "*") for name in (CONFIG, *_RESULTS)]
    patterns.append(f"{STEP_CHECKPOINTS}/{_temporary('step-*.pt', '*')}")
    for pattern in patterns:
        for litter in path.glob(pattern):
            litter.unlink()
