"""The smallest of sweeps. `python -m tests.helpers.sweeps OUT` runs it with worker processes."""

import sys
from pathlib import Path

from noisescale.problems.config import ProblemConfig
from noisescale.studies.stability_map.config import Horizon, SweepConfig
from noisescale.studies.stability_map.run import SweepOptions, run_sweep

PROBLEM = ProblemConfig(dataset="digits", num_train=100, width=4, depth=1)
CONFIG = SweepConfig(
    problem=PROBLEM,
    batch_sizes=(4, 50),
    lr_min=0.1,
    lr_max=1e4,
    factor=3.2,
    num_seeds=2,
    horizon=Horizon(steps=12),
)
QUIET = SweepOptions(predict=False)

if __name__ == "__main__":
    run_sweep(CONFIG, Path(sys.argv[1]), options=QUIET)
