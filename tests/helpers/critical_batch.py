"""The smallest measurement of a critical batch size, and the same with the noise scale along it.

`python -m tests.helpers.critical_batch OUT` makes the latter with two worker processes.
"""

import sys
from dataclasses import replace
from pathlib import Path

from noisescale.problems.config import ProblemConfig
from noisescale.studies.critical_batch.config import CriticalBatchConfig
from noisescale.studies.critical_batch.run import run_critical_batch
from noisescale.studies.jobs.local import LocalProcesses

PROBLEM = ProblemConfig(dataset="digits", num_train=200, width=8, depth=1)
CONFIG = CriticalBatchConfig(
    problem=PROBLEM, batch_sizes=(2, 8, 32, 128), goals=(1.8, 1.2), num_seeds=2, noise_examples=None
)
TRACKED = replace(CONFIG, noise_examples=100)  # more than half of the time goes to the noise scale

if __name__ == "__main__":
    run_critical_batch(TRACKED, Path(sys.argv[1]), executor=LocalProcesses(2))
