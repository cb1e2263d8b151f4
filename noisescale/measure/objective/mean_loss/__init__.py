"""The mean loss of a set of examples as a function of one flat parameter vector."""

from noisescale.measure.objective.mean_loss.chunks import CHUNK_BYTES, free_bytes
from noisescale.measure.objective.mean_loss.objective import Objective

__all__ = ["CHUNK_BYTES", "Objective", "free_bytes"]
