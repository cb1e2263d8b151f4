"""A measured number with its error: value, stderr and 95 % interval, in words and on disk."""

from noisescale.statistics.estimate.in_words import Number, three_digits, two_digits, written_out
from noisescale.statistics.estimate.intervals import (
    CONFIDENCE,
    Reach,
    between,
    exact,
    from_log_samples,
    from_samples,
    from_stderr,
    quotient,
    ratio,
    rescaled,
    stretched,
    student_t,
    undefined,
)
from noisescale.statistics.estimate.records import (
    estimate_columns,
    estimate_of,
    estimate_row,
    from_record,
    jsonable,
)
from noisescale.statistics.estimate.value import Estimate

__all__ = [
    "CONFIDENCE",
    "Estimate",
    "Number",
    "Reach",
    "between",
    "estimate_columns",
    "estimate_of",
    "estimate_row",
    "exact",
    "from_log_samples",
    "from_record",
    "from_samples",
    "from_stderr",
    "jsonable",
    "quotient",
    "ratio",
    "rescaled",
    "stretched",
    "student_t",
    "three_digits",
    "two_digits",
    "undefined",
    "written_out",
]
