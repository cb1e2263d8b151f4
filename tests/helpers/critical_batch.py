"""The smallest measurement of a critical batch size.

`python -m tests.helpers.critical_batch OUT` makes it with two worker processes.
"""

import sys
from pathlib import Path

from noisescale.problems.config import ProblemConfig
from noisescale.studies.critical_batch.config import CriticalBatchConfig
from noisescale.studies.critical_batch.run import run_critical_batch
from noisescale.studies.jobs.executors import LocalProcesses

PROBLEM = ProblemConfig(dataset="digits", num_train=200, width=8, depth=1)
CONFIG = CriticalBatchConfig(
    problem=PROBLEM, batch_sizes=(2, 8, 32, 128), goals=(1.8, 1.2), num_seeds=2, noise_examples=100
)

if __name__ == "__main__":
    run_critical_batch(CONFIG, Path(sys.argv[1]), executor=LocalProcesses(2))
