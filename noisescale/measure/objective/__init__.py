"""The mean loss of a set of examples as a function of one flat parameter vector."""

from noisescale.errors import is_out_of_memory
from noisescale.measure.objective.mean_loss import CHUNK_BYTES, Objective, free_bytes
from noisescale.measure.objective.parameters import flatten
from noisescale.measure.objective.passes import as_measured

__all__ = ["CHUNK_BYTES", "Objective", "as_measured", "flatten", "free_bytes", "is_out_of_memory"]
