"""`python -m analysis NAME RUNS` turns an experiment's runs into the tables of its figure."""

import click

from analysis.adaptive_batch import adaptive_batch
from analysis.batches.batch_cost import batch_cost
from analysis.batches.bias_variance import bias_variance
from analysis.batches.sharp_minima import sharp_minima
from analysis.batches.small_batches import small_batches
from analysis.calibration import calibration
from analysis.critical_batch import critical_batch
from analysis.noise_growth import noise_growth
from analysis.stability.catapult import catapult
from analysis.stability.edge_of_stability import edge_of_stability
from analysis.stability.stability_map import stability_map
from analysis.stability.three_cases import three_cases


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Turn run folders into tidy tables."""


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
    main(prog_name="python -m analysis")
