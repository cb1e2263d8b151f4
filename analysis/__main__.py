"""`python -m analysis NAME RUNS` turns an experiment's runs into the tables of its figure."""

from pathlib import Path

import click

from analysis.batches.batch_cost import batch_cost
from analysis.batches.bias_variance import bias_variance
from analysis.batches.sharp_minima import sharp_minima
from analysis.batches.small_batches import small_batches
from analysis.composition.adam import adam
from analysis.composition.anatomy import anatomy
from analysis.composition.heterogeneity import heterogeneity
from analysis.composition.importance import importance
from analysis.composition.model_size import model_size
from analysis.composition.temperature import temperature
from analysis.noise.adaptive_batch import adaptive_batch
from analysis.noise.calibration import calibration
from analysis.noise.critical_batch import critical_batch
from analysis.noise.fronts import fronts
from analysis.noise.noise_growth import noise_growth
from analysis.noise.schedules import schedules
from analysis.stability.catapult import catapult
from analysis.stability.edge_of_stability import edge_of_stability
from analysis.stability.preconditioned_edge import preconditioned_edge
from analysis.stability.stability_map import stability_map
from analysis.stability.three_cases import three_cases
from analysis.tables import DATA


def tables_of(name: str) -> str:
    """The folder of an experiment's tables, from the top of the repository."""
    out = next(option.default for option in main.commands[name].params if option.name == "out")
    return Path(str(out)).relative_to(DATA.parent.parent).as_posix()


def show_list(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    """Says of each analysis what it makes, and where it comes to lie."""
    if not wanted:
        return
    formatter = ctx.make_formatter()
    formatter.write_dl(
        [(name, f"{command.help} In {tables_of(name)}.") for name, command in main.commands.items()]
    )
    click.echo(formatter.getvalue(), nl=False)
    ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_list,
    help="Say of each what it makes, and where its tables lie.",
)
def main() -> None:
    """Turn run folders into tidy tables."""


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
    main(prog_name="python -m analysis")
