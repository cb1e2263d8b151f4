"""The former name of `noisescale.training.records.tables`, kept for a release."""

from noisescale.training.records.tables import *
