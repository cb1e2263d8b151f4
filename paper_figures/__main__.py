"""`python -m paper_figures [NAME ...]` draws the named figures, or all, from committed tables."""

import sys
from pathlib import Path

import click
from matplotlib.figure import Figure

from paper_figures import scaling
from paper_figures.batches import batch_cost, bias_variance, sharp_minima, small_batches
from paper_figures.composition import (
    adam,
    anatomy,
    heterogeneity,
    importance,
    model_size,
    temperature,
)
from paper_figures.noise import (
    adaptive_batch,
    critical_batch,
    fronts,
    noise_growth,
    schedules,
)
from paper_figures.stability import (
    catapult,
    edge_of_stability,
    stability_map,
    stability_prediction,
    three_cases,
)

FIGURES = {
    "three_cases": three_cases.figure,
    "edge_of_stability": edge_of_stability.figure,
    "noise_growth": noise_growth.figure,
    "adaptive_batch": adaptive_batch.figure,
    "stability_map": stability_map.figure,
    "stability_prediction": stability_prediction.figure,
    "critical_batch": critical_batch.figure,
    "sharp_minima": sharp_minima.figure,
    "bias_variance": bias_variance.figure,
    "catapult": catapult.figure,
    "small_batches": small_batches.figure,
    "batch_cost": batch_cost.figure,
    "temperature": temperature.figure,
    "anatomy": anatomy.figure,
    "importance": importance.figure,
    "heterogeneity": heterogeneity.figure,
    "adam": adam.figure,
    "model_size": model_size.figure,
    "fronts": fronts.figure,
    "schedules": schedules.figure,
}
# drawn from a benchmark's JSON
OF_BENCHMARKS = {"scaling": scaling.figure}
# the experiment whose tables a figure is drawn from, where it is not that of its own name
DRAWN_FROM = {"stability_prediction": "stability_map"}
HERE = Path(__file__).parent
PICTURES = HERE / "pictures"
RESULTS = HERE.parent / "experiments" / "benchmarks" / "results"


def figures_of(experiment: str) -> list[str]:
    """The figures of an experiment's tables, from the top of the repository."""
    return [
        f"{HERE.name}/{PICTURES.name}/{name}.png"
        for name in FIGURES
        if DRAWN_FROM.get(name, name) == experiment
    ]


def show_list(ctx: click.Context, option: click.Parameter, wanted: bool) -> None:
    """Says of each figure what it shows, and which tables it is drawn from."""
    if not wanted:
        return
    formatter = ctx.make_formatter()
    formatter.write_dl([(name, _line(name)) for name in FIGURES])
    click.echo(formatter.getvalue(), nl=False)
    ctx.exit()


def _line(name: str) -> str:
    shows = str(sys.modules[FIGURES[name].__module__].__doc__).partition("\n")[0]
    return f"{shows} From {HERE.name}/data/{DRAWN_FROM.get(name, name)}."


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--list",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_list,
    help="Say of each figure what it shows, and which tables it is drawn from.",
)
@click.argument("names", nargs=-1, type=click.Choice([*FIGURES, *OF_BENCHMARKS]))
@click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True),
    default=HERE / "data",
    help="Where the tables lie.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=PICTURES,
    help="Where the figures go.",
)
def main(names: tuple[str, ...], data: Path, out: Path) -> None:
    """Draw the paper's figures, as NAME.png and NAME.pdf."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names or (*FIGURES, *OF_BENCHMARKS):
        try:
            drawn: Figure = (FIGURES | OF_BENCHMARKS)[name](
                RESULTS if name in OF_BENCHMARKS else data
            )
        except FileNotFoundError as error:
            raise click.ClickException(
                f"{error.filename} is missing: make it with python -m analysis"
            ) from error
        for suffix in ("png", "pdf"):
            drawn.savefig(out / f"{name}.{suffix}", dpi=150)
        click.echo(out / f"{name}.png")


if __name__ == "__main__":
    main(prog_name="python -m paper_figures")
