"""`python -m experiments NAME` computes an experiment's runs, those that are not finished yet."""

import click

from experiments.adaptive_batch import adaptive_batch
from experiments.batches.batch_cost import batch_cost
from experiments.batches.bias_variance import bias_variance
from experiments.batches.sharp_minima import sharp_minima
from experiments.batches.small_batches import small_batches
from experiments.calibration import calibration
from experiments.critical_batch import critical_batch
from experiments.noise_growth import noise_growth
from experiments.stability.catapult import catapult
from experiments.stability.edge_of_stability import edge_of_stability
from experiments.stability.stability_map import stability_map
from experiments.stability.three_cases import three_cases
from noisescale.cli.group import Commands


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Compute an experiment's runs; a finished one is never recomputed, a killed one resumes.

    Start the same command twice to use two cores: each process takes runs the other has not (set
    OMP_NUM_THREADS=1 for both).
    """


main.add_command(three_cases)
main.add_command(adaptive_batch)
main.add_command(edge_of_stability)
main.add_command(noise_growth)
main.add_command(stability_map)
main.add_command(critical_batch)
main.add_command(calibration)
main.add_command(batch_cost)
main.add_command(small_batches)
main.add_command(sharp_minima)
main.add_command(bias_variance)
main.add_command(catapult)

if __name__ == "__main__":
    main(prog_name="python -m experiments")
