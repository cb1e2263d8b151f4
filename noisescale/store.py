"""The former name of `noisescale.training.records.folder`, kept for a release."""

from noisescale.training.records.folder import *
