"""Which batch size and learning rate to use: three aims, each with an interval, in ten lines."""

from noisescale.statistics.critical_batch.advice.forms import Project, schedule_text
from noisescale.statistics.critical_batch.advice.result import (
    MOST_LINES,
    WIDTH,
    Advice,
    AimedSize,
    Rule,
)
from noisescale.statistics.critical_batch.advice.rules import ScalingRules
from noisescale.statistics.critical_batch.advice.schedule import (
    BatchSizeSchedule,
    Stage,
    batch_size_schedule,
)
from noisescale.statistics.critical_batch.advice.sizes import (
    aimed_sizes,
    differ,
    rate_between,
    rate_law,
)
from noisescale.statistics.critical_batch.advice.words import (
    in_use_text,
    interval_text,
    number_text,
)

__all__ = [
    "MOST_LINES",
    "WIDTH",
    "Advice",
    "AimedSize",
    "BatchSizeSchedule",
    "Project",
    "Rule",
    "ScalingRules",
    "Stage",
    "aimed_sizes",
    "batch_size_schedule",
    "differ",
    "in_use_text",
    "interval_text",
    "number_text",
    "rate_between",
    "rate_law",
    "schedule_text",
]
