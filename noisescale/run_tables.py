"""The former name of `noisescale.training.records.tables`, kept for a release."""

from noisescale.statistics.estimate import (
    estimate_columns as estimate_columns,
    estimate_row as estimate_row,
)
from noisescale.training.records.tables import *
