"""The failures a user can meet, and the checks that say so.

Each message says what was given, what is allowed and what to do.
"""

from __future__ import annotations

LARGEST = 3e38  # the largest number that float32 parameters can be multiplied by


class NoisescaleError(RuntimeError):
    """The work could not be done; the command line prints the message alone and exits with 1."""


class SettingError(NoisescaleError, ValueError):
    """A setting is out of its range; the command line exits with 2."""


class DataError(NoisescaleError):
    """A data set is absent, damaged or cannot be fetched."""


class CheckpointError(NoisescaleError):
    """A checkpoint is absent, damaged or not one of ours."""


class RunFolderError(NoisescaleError):
    """A run folder belongs to something else."""


class RunFolderBusyError(RunFolderError):
    """Another process is writing to this run folder."""


class MeasurementError(NoisescaleError):
    """A quantity is not defined, or cannot be computed, for this model at these parameters."""


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
    """Whether this is a number, True and False aside."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """SettingError unless `value` is one of `allowed`."""
    if value not in allowed:
        raise SettingError(f"{name} {value!r}: choose one of {', '.join(allowed)}")


def check_count(name: str, value: object, *, instead: str = "") -> None:
    """SettingError unless `value` is a whole number of 1 or more.

    Args:
        name: of the setting, for the message.
        value: what was given.
        instead: what else may be given, as it continues the message: ', "full" or "adaptive"'.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SettingError(f"{name} {value!r}: give a whole number of 1 or more{instead}")


def first_line(error: BaseException, *, limit: int = 200) -> str:
    """The first line of what an exception says, up to `limit` characters; else its type's name."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:limit]
