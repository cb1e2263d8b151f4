"""`python -m experiments NAME` computes an experiment's runs, those that are not finished yet."""

from pathlib import Path

import click

from experiments.batches.batch_cost import batch_cost
from experiments.batches.bias_variance import bias_variance
from experiments.batches.sharp_minima import sharp_minima
from experiments.batches.small_batches import small_batches
from experiments.composition.adam import adam
from experiments.composition.anatomy import anatomy
from experiments.composition.heterogeneity import heterogeneity
from experiments.composition.importance import importance
from experiments.composition.model_size import model_size
from experiments.composition.temperature import temperature
from experiments.durations import duration, timed
from experiments.noise.adaptive_batch import adaptive_batch
from experiments.noise.calibration import calibration
from experiments.noise.critical_batch import critical_batch
from experiments.noise.fronts import fronts
from experiments.noise.noise_growth import noise_growth
from experiments.noise.schedules import schedules
from experiments.stability.catapult import catapult
from experiments.stability.edge_of_stability import edge_of_stability
from experiments.stability.preconditioned_edge import preconditioned_edge
from experiments.stability.stability_map import stability_map
from experiments.stability.three_cases import three_cases
from noisescale.cli.group import Commands
from noisescale.cli.help import HELP_WIDTH

ROOT = Path(__file__).parent.parent


class Experiments(Commands):
    """Commands whose processor time is recorded beside their runs."""

    def add_command(self, command: click.Command, name: str | None = None) -> None:
        """Adds an experiment."""
        super().add_command(timed(command), name)


def show_list(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    """Says of each experiment what it makes, how long that takes, and where it comes to lie."""
    if not wanted:
        return
    formatter = ctx.make_formatter()
    formatter.write_dl([(name, _line(command)) for name, command in main.commands.items()])
    click.echo(formatter.getvalue())
    click.echo(
        "Times on one core; experiments/benchmarks/results/durations.csv has where and when."
    )
    ctx.exit()


def _line(command: click.Command) -> str:
    # imported here, since processes that compute runs import this module and draw nothing
    from analysis.__main__ import tables_of
    from paper_figures.__main__ import figures_of

    name = str(command.name)
    scales = next(option.type for option in command.params if option.name == "scale")
    assert isinstance(scales, click.Choice)
    times = ", ".join(f"{duration(name, scale)} ({scale})" for scale in scales.choices)
    figures = ", ".join(figures_of(name)) or "none"
    tables = tables_of(name)
    if not list((ROOT / tables).glob("*.csv")):
        tables += " (not committed yet)"
    return (
        f"{command.get_short_help_str(limit=200)} Time: {times}. Tables: {tables}. "
        f"Figures: {figures}."
    )


@click.group(
    cls=Experiments,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": HELP_WIDTH},
)
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_list,
    help="Say of each what it makes, how long it takes, and where its tables and figures lie.",
)
def main() -> None:
    """Compute an experiment's runs; a finished one is never recomputed, a killed one resumes.

    Start the same command twice to use two cores: each process takes runs the other has not (set
    OMP_NUM_THREADS=1 for both).
    """


main.add_command(three_cases)
main.add_command(adaptive_batch)
main.add_command(edge_of_stability)
main.add_command(preconditioned_edge)
main.add_command(noise_growth)
main.add_command(stability_map)
main.add_command(critical_batch)
main.add_command(calibration)
main.add_command(fronts)
main.add_command(schedules)
main.add_command(batch_cost)
main.add_command(small_batches)
main.add_command(sharp_minima)
main.add_command(bias_variance)
main.add_command(catapult)
main.add_command(model_size)
main.add_command(heterogeneity)
main.add_command(anatomy)
main.add_command(temperature)
main.add_command(importance)
main.add_command(adam)

if __name__ == "__main__":
    main(prog_name="python -m experiments")
