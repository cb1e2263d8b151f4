"""Options that several commands share."""

from noisescale.cli.options.execution import (
    check_executor,
    executor_options,
    machine_options,
    open_executor,
)
from noisescale.cli.options.forms import FOLDER, PICTURES, BatchSize, FileOf, Steps, flag, together
from noisescale.cli.options.measurement import (
    Project,
    batch_schedule_options,
    measurement_options,
    showing_what_is_found,
)
from noisescale.cli.options.problem import (
    choose_dataset,
    own_problem_option,
    problem_options,
    refuse_beside_problem,
)
from noisescale.cli.options.training import (
    adaptive_options,
    amp_option,
    fill,
    optimizer_options,
    sampling_options,
    schedule_options,
    training_options,
)

__all__ = [
    "FOLDER",
    "PICTURES",
    "BatchSize",
    "FileOf",
    "Project",
    "Steps",
    "adaptive_options",
    "amp_option",
    "batch_schedule_options",
    "check_executor",
    "choose_dataset",
    "executor_options",
    "fill",
    "flag",
    "machine_options",
    "measurement_options",
    "open_executor",
    "optimizer_options",
    "own_problem_option",
    "problem_options",
    "refuse_beside_problem",
    "sampling_options",
    "schedule_options",
    "showing_what_is_found",
    "together",
    "training_options",
]
