"""The failures a user can meet, and the checks that say so.

Each message says what was given, what is allowed and what to do.
"""

from __future__ import annotations

import stat
import sysconfig
import traceback
from numbers import Integral, Real
from pathlib import Path
from typing import Any

LARGEST = 3e38  # the largest number that float32 parameters can be multiplied by
LARGEST_COUNT = 2**63 - 1  # the largest whole number that tensors hold
MOST_RUNS = 10_000  # of a study at one batch size, in seeds or in rates: more is a slip of the hand


class NoisescaleError(RuntimeError):
    """The work could not be done; the command line prints the message alone and exits with 1."""


class SettingError(NoisescaleError, ValueError):
    """A setting is out of its range; the command line exits with 2.

    Attributes:
        command: click's context of the command that it was raised in, where one was.
    """

    command: Any = None


class DataError(NoisescaleError):
    """A data set is absent, damaged or cannot be fetched."""


class CheckpointError(NoisescaleError):
    """A checkpoint is absent, damaged or not one of ours."""


class RunFolderError(NoisescaleError):
    """A run folder belongs to something else."""


class RunFolderBusyError(RunFolderError):
    """Another process is writing to this run folder."""


class NotEnoughMemoryError(NoisescaleError):
    """What is asked for is known to take more memory than there is."""


class OwnCodeError(NoisescaleError):
    """A function or a file of the user's own has failed, other than where a message is nearer."""


class MeasurementError(NoisescaleError):
    """A quantity is not defined, or cannot be computed, for this model at these parameters."""


class NoProgressError(MeasurementError):
    """The noise scale along a run whose loss ends above its start says nothing of a batch size."""


class NotMeasurable(MeasurementError):
    """A quantity cannot be computed for models of this kind, whatever the settings."""


class Interrupted(BaseException):
    """A signal ended the work after its state was saved.

    Attributes:
        exit_code: the shell's 128 + signal.
        found: what is known so far, as the work would have returned it; None for nothing.
    """

    def __init__(self, kept: str, signal_number: int, *, found: object = None) -> None:
        """One wording for all that can be interrupted.

        Args:
            kept: what is kept, and how to go on.
            signal_number: of the signal.
            found: as the attribute.
        """
        super().__init__(f"Stopped: {kept}.")
        self.exit_code = 128 + signal_number
        self.found = found


class StoppedEarly(KeyboardInterrupt):
    """Ctrl-C in the middle of a measurement of several parts: still a KeyboardInterrupt.

    Attributes:
        found: the result without the parts that were still to come, which its notes name.
    """

    def __init__(self, found: object) -> None:
        super().__init__("stopped before the last part of a measurement")
        self.found = found


def is_real(value: object) -> bool:
    """Whether this is a number, of numpy's as well, True and False aside."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """SettingError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise SettingError(f"{name} {value!r}: choose one of {', '.join(allowed)}")


def check_count(name: str, value: object, *, instead: str = "", most: int = LARGEST_COUNT) -> None:
    """SettingError unless `value` is a whole number of 1 or more, up to a largest one.

    Args:
        name: of the setting, for the message.
        value: what was given.
        instead: what else may be given, as it continues the message: ', "full" or "adaptive"'.
        most: the largest that is allowed, by default what 64 bits hold.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 1:
        raise SettingError(f"{name} {value!r}: give a whole number of 1 or more{instead}")
    if int(value) > most:
        said = f"{int(value):,}" if int(value) < LARGEST_COUNT else "beyond 64 bits"
        raise SettingError(f"{name} {said}: give {most:,} at most{instead}")


def check_file(path: Path, error: type[NoisescaleError]) -> None:
    """Refuses what cannot be read as a whole: no regular file, or more than the memory holds.

    A pipe without a writer is waited for without end, and a device may have none. A file that is
    not there is left to the one that opens it.

    Args:
        path: of the file.
        error: what is raised.

    Raises:
        NoisescaleError: of the class `error`.
    """
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    except (OSError, ValueError) as reason:  # names that are too long, loops of links, no access
        raise error(f"{path}: {getattr(reason, 'strerror', None) or reason}") from reason
    for kind, name in NO_FILES.items():
        if stat.S_IFMT(status.st_mode) == kind:
            raise error(f"{path} is {name}: give a regular file")
    check_memory(status.st_size, f"{path} has {status.st_size:,} bytes", error=error)


NO_FILES = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_memory(
    num_bytes: int, what: str, *, error: type[NoisescaleError] = NotEnoughMemoryError
) -> None:
    """Refuses what is known to take more memory than there is, before any of it is made.

    Args:
        num_bytes: that it takes at least.
        what: it is, and how large, as the message begins.
        error: what is raised.

    Raises:
        NoisescaleError: of the class `error`.
    """
    if (available := available_memory()) is not None and num_bytes > available:
        raise error(
            f"not enough memory: {what}, which take {num_bytes / 1e9:,.3g} GB at least, and "
            f"{available / 1e9:,.3g} GB are free; give a smaller one"
        )


def available_memory() -> int | None:
    """The bytes that this process may still take, as far as Linux tells; None where it does not."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = dict(line.split(":") for line in lines)
    available = sizes.get("MemAvailable")
    return None if available is None else 1024 * int(available.split()[0])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory did not suffice; on a CPU torch has no exception of its own for that."""
    words = ("out of memory", "allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")
    said = isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    return said or isinstance(error, MemoryError)


def first_line(error: BaseException, *, limit: int = 200) -> str:
    """The first line of what an exception says, up to `limit` characters; else its type's name."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:limit]


def own_words(error: BaseException, *, limit: int = 200) -> str:
    """What an exception of anybody's code says: type, text and the user's own line it came from.

    Args:
        error: the exception.
        limit: characters of the text, at most.

    Returns:
        Such as "KeyError: 'label' (my_model.py, line 12, in loss)"; without a place where no line
        of the user's own has a part in it, or the text says it.
    """
    text = first_line(error, limit=limit)
    name = type(error).__name__
    said = name if text == name else f"{name}: {text}"
    place = own_place(error)
    return f"{said} ({place})" if place else said


def own_place(error: BaseException) -> str | None:
    """The last line in code of the user's own through which an exception came; None for none.

    That is code called by this package which is neither its own nor an installed library's.
    """
    inside, place = False, None
    for frame in traceback.extract_tb(error.__traceback__):
        path = Path(frame.filename).absolute()
        if path.is_relative_to(_PACKAGE):
            inside |= path != _COMMANDS
        elif inside and path.is_file() and not any(map(path.is_relative_to, _LIBRARIES)):
            place = f"{path.name}, line {frame.lineno}, in {frame.name}"
    return place


_PACKAGE = Path(__file__).parent.absolute()
_COMMANDS = _PACKAGE / "cli" / "group.py"  # which calls commands of other programs too
_LIBRARIES = {Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")}
