"""Run folders: written atomically, never by two at once, read back as tidy tables."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, Self

from filelock import FileLock, Timeout

from noisescale.errors import NoisescaleError, RunFolderBusyError, RunFolderError, check_file
from noisescale.problems.config import AnyConfig, parse_problem
from noisescale.statistics.estimate import jsonable
from noisescale.training.config import TrainConfig
from noisescale.training.records.tables import MOVE_AWAY, TABLES

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
ASIDE = ".replaced"  # the folder, within its own, of a run that is being replaced
_NUMBER: tuple[type, ...] = (int, float)
_NUMBER_OR_NULL = (*_NUMBER, NoneType)  # null where it is not finite
SPLITS, SCORES = ("train", "validation", "test"), ("loss", "accuracy", "f1")
# What a summary holds under these names, where it has them
FIELDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("dataset", "pixel_scale", "model"), (str,)),
    **dict.fromkeys(("learning_rate", "epochs", "seconds", "examples_per_second"), _NUMBER),
    **dict.fromkeys(("seed", "steps", "examples_seen"), (int,)),
    **dict.fromkeys(
        ("best_loss", "start_loss", "largest_loss", "chance_loss", "largest_share"), _NUMBER_OR_NULL
    ),
    **dict.fromkeys(("environment", *SPLITS), (dict,)),
    "batch_size": (int, str),
    **dict.fromkeys(("diverged_at_step", "num_train"), (int, NoneType)),
    "label_noise": _NUMBER,
    "imbalance": _NUMBER,
    "classes": (int,),
    "notes": (list,),
}
OF_RUN = (
    *("batch_size", "learning_rate", "seed", "steps", "epochs", "seconds", "examples_per_second"),
    *("diverged_at_step", "train", "environment"),
)
OF_OUR_PROBLEM = ("dataset", "pixel_scale", "model", "test")

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
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is not None:
            # the name that whoever reads the message knows
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


def may_write(folder: Path) -> bool:
    """Whether files can be written there: a finished study can be shown where they cannot."""
    return os.access(folder, os.W_OK)


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
        force: put aside the results in the folder, whatever run they are of. They are deleted once
            this run is finished, and put back where it fails before its first checkpoint.
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
            if (self.path / ASIDE).exists() and not (self.path / CONFIG).exists():
                _put_back(self.path)  # a kill came while it was put aside
            if self.force and (self.path / CONFIG).exists():
                _put_aside(self.path)
                write_json(self.path / CONFIG, self.config)
            elif self.state == "new":
                write_json(self.path / CONFIG, self.config)
            _remove_litter(self.path)
        except BaseException as error:
            self.__exit__(error)
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if (self.path / ASIDE).exists():
            _settle(self.path, failed=exception[0] is not None)
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
        f"{section}.{name} is {old.get(name)!r} there, {new.get(name)!r} here"
        for section, old, new in zip(("problem", "training"), in_folder, given, strict=True)
        for name in {**new, **old}  # some are stored where they are set alone
        if old.get(name) != new.get(name)
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


def _put_aside(path: Path) -> None:
    """Moves what a run has left in its folder into one within, but for what has been there longer.

    That is a run that another was to replace. Of the latter nothing stays, unless it has finished.
    """
    if (path / ASIDE).exists():
        if not (path / SUMMARY).exists():
            _remove(path)
            return
        _remove(path / ASIDE)
        _remove_folder(path / ASIDE)
    (path / ASIDE).mkdir()
    for file in _files_of_run(path):
        target = path / ASIDE / file.relative_to(path)
        target.parent.mkdir(exist_ok=True)
        file.replace(target)


def _settle(path: Path, *, failed: bool) -> None:
    """Deletes the run that was put aside, once its successor has not failed or is finished.

    It is put back where that has failed and left nothing to go on from, no checkpoint; else both
    stay.
    """
    aside = path / ASIDE
    if not failed or (path / SUMMARY).exists():
        _remove(aside)
    elif not (path / CHECKPOINT).exists():
        _remove(path)
        _put_back(path)
        return
    else:
        return
    _remove_folder(aside)


def _put_back(path: Path) -> None:
    """Moves what was put aside into the folder again."""
    aside = path / ASIDE
    for file in reversed(_files_of_run(aside)):  # config.json before the results
        target = path / file.relative_to(aside)
        target.parent.mkdir(exist_ok=True)
        file.replace(target)
    _remove_folder(aside)


def _remove_folder(aside: Path) -> None:
    if (aside / STEP_CHECKPOINTS).exists():
        (aside / STEP_CHECKPOINTS).rmdir()
    aside.rmdir()


def _remove(path: Path) -> None:
    """Deletes what a run has left in its folder."""
    for file in _files_of_run(path):
        file.unlink()


def _files_of_run(path: Path) -> list[Path]:
    """What a run has left in its folder, its summary first, since that means finished."""
    files = [path / name for name in (*_RESULTS, CONFIG)]
    return [
        *(file for file in files if file.exists()),
        *(path / STEP_CHECKPOINTS).glob("step-*.pt"),
    ]


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, None where there is none; RunFolderError where it is damaged."""
    try:
        content = parse_json(path, RunFolderError)
    except FileNotFoundError:
        return None
    except RunFolderError as error:
        raise RunFolderError(f"{error}: {what_to_do(path)}") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{path} holds no JSON object: {what_to_do(path)}")
    return content


def parse_json(path: Path, error: type[NoisescaleError]) -> Any:
    """What a JSON file holds.

    Raises FileNotFoundError where it is absent and `error`, with the reason, where it cannot be
    read, be it for lists within lists by the ten thousand.
    """
    check_file(path, error)
    try:
        return json.loads(path.read_bytes())
    except RecursionError as reason:
        raise error(f"{path} is not valid JSON (nested too deep)") from reason
    except ValueError as reason:
        raise error(f"{path} is not valid JSON ({reason})") from reason


def what_to_do(path: Path) -> str:
    """What a user does about a damaged file of ours, without losing what lies beside it."""
    if path.name == CONFIG:
        return (
            "put back what it was, or choose another --out; the checkpoints beside it can be "
            "measured as they are"
        )
    if path.name == SUMMARY:
        return MOVE_AWAY
    return "put back what it was, or choose another --out"


def read_summary(folder: Path) -> dict[str, Any]:
    """A finished run's summary; RunFolderError where a field is missing or of another kind."""
    path = folder / SUMMARY
    summary = read_json(path)
    if summary is None:
        raise RunFolderError(f"{path} is missing, so that this is no finished run")
    needed = OF_RUN if "problem" in summary else (*OF_RUN, *OF_OUR_PROBLEM)
    if wrong := wrong_fields(summary, needed):
        raise RunFolderError(
            f"{path} is no run's summary ({', '.join(wrong)} missing or damaged): "
            f"{what_to_do(path)}"
        )
    return summary


def wrong_fields(record: dict[str, Any], needed: Iterable[str]) -> list[str]:
    """What a summary lacks of the fields needed, and what it holds of another kind than it should.

    A score within a split is named as "train.loss".
    """
    wrong = [name for name in needed if name not in record]
    wrong += [
        name for name, kinds in FIELDS.items() if name in record and not _is_of(record[name], kinds)
    ]
    for split in SPLITS:
        scores = record.get(split)
        if isinstance(scores, dict):
            wrong += [
                f"{split}.{name}"
                for name in SCORES
                if name not in scores or not _is_of(scores[name], _NUMBER_OR_NULL)
            ]
    return wrong


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    return isinstance(value, kinds) and not isinstance(value, bool)


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
    folders = {summary.parent for summary in root.rglob(SUMMARY)}
    return sorted(folder for folder in folders if folder.name != ASIDE)


def _temporary(name: str, writer: str) -> str:
    return f".{name}.{writer}.tmp"


def _remove_litter(path: Path) -> None:
    """Deletes the temporary files of a killed writer, known by the names of a run's files."""
    patterns = [_temporary(name, "*") for name in (CONFIG, *_RESULTS)]
    patterns.append(f"{STEP_CHECKPOINTS}/{_temporary('step-*.pt', '*')}")
    for pattern in patterns:
        for litter in path.glob(pattern):
            litter.unlink()
