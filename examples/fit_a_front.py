"""B_crit from anybody's table of runs: batch sizes, steps to a goal, seeds, and one that failed."""

import numpy as np

from noisescale import fit_critical_batch

batch_sizes = np.repeat([8, 16, 32, 64, 128, 256, 512], 3)
seeds = np.tile([0, 1, 2], 7)
generator = np.random.default_rng(0)
steps = 500 * (1 + 60 / batch_sizes) * np.exp(0.05 * generator.standard_normal(21))
censored = steps > 4000  # the budget of a run: these are bounds, not numbers
steps = np.minimum(steps, 4000)

fit = fit_critical_batch(batch_sizes, steps, seeds=seeds, censored=censored)
critical = fit.critical_batch_size
print(f"B_crit = {critical.value:.1f} ({critical.low:.1f} to {critical.high:.1f}); it is 60")
print(f"{fit.num_censored} runs did not arrive; remarks: {'; '.join(fit.remarks()) or 'none'}")
