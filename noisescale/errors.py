"""The failures a user can meet: each message says what was given, what is allowed and what to do."""


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
