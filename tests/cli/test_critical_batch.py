"""noisescale critical-batch, as its users meet it."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from matplotlib.figure import Figure

from noisescale.cli import main
from noisescale.plots.critical_batch import plot_branches, plot_critical_sizes, plot_fronts
from noisescale.statistics.critical_batch.branches import BRANCH_COLUMNS, branch_means
from noisescale.statistics.critical_batch.goal_table import fastest_runs, fit_goals, fits_table
from tests.helpers.executors import Here
from tests.helpers.goal_tables import SIZES, synthetic

SMALL = ["--dataset", "digits", "--num-train", "200", "--width", "8", "--depth", "1"]
FEW = [
    *(part for size in (2, 8, 32, 128) for part in ("--bs", size)),
    "--goal",
    "1.8",
    "--goal",
    "1.2",
]
FACTORY = """
import torch
from noisescale import Examples, Problem


def make_problem():
    inputs = torch.randn(64, 3)
    targets = inputs @ torch.tensor([1.0, -1.0, 0.5]) + 0.3 * torch.randn(64)
    model = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0))
    examples = Examples(inputs, targets)
    loss = lambda outputs, targets: (outputs - targets) ** 2
    return Problem(model=model, loss=loss, train=examples)
"""


@pytest.fixture(autouse=True)
def _in_this_thread(monkeypatch):
    """Runs are made here: a process takes seconds to start."""
    monkeypatch.setattr("noisescale.studies.jobs.local.LocalProcesses", lambda count: Here())


def critical(*arguments):
    return CliRunner().invoke(main, ["critical-batch", *map(str, arguments)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    out = tmp_path_factory.mktemp("base") / "run"
    found = CliRunner().invoke(
        main,
        [
            "train",
            *SMALL,
            "--bs",
            "4",
            "--lr",
            "0.1",
            "--epochs",
            "2",
            "--dataset",
            "digits",
            "--out",
            str(out),
        ],
    )
    assert found.exit_code == 0, found.output
    return out


@pytest.mark.slow
def test_the_whole_measurement(tmp_path):
    out = tmp_path / "out"
    found = critical(*SMALL, *FEW, "--seeds", 2, "--noise-examples", 100, "--out", out)
    assert found.exit_code == 0, found.output
    assert "B_crit = E_min/S_min" in found.stdout
    assert "B_simple" in found.stdout
    assert "ε_max/(1 + B_c/B)" in found.stdout
    assert found.stdout.splitlines()[-1] == str(out)
    records = json.loads((out / "fit.json").read_text())["goals"]
    for record in records:
        value = record["critical_batch_size"]["value"]
        if value is not None:
            assert f"{value:.3g}" in found.stdout
    again = critical(*SMALL, *FEW, "--seeds", 2, "--noise-examples", 100, "--out", out, "--json")
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout, parse_constant=pytest.fail)["goals"] == records


def test_a_problem_of_ones_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FACTORY)
    found = critical(
        "--problem",
        "own.py:make_problem",
        "--bs",
        1,
        "--bs",
        4,
        "--bs",
        16,
        "--bs",
        64,
        "--no-noise",
        "--seeds",
        2,
    )
    assert found.exit_code == 0, found.output
    folder = found.stdout.splitlines()[-1]
    assert folder.startswith("runs/critical-make_problem-")
    table = pd.read_csv(tmp_path / folder / "steps_to_goal.csv")
    assert table["goal"].nunique() == 5


@pytest.mark.pictures
def test_anybodys_results(tmp_path):
    path = tmp_path / "runs.csv"
    synthetic().to_csv(path, index=False)
    found = critical("--from-csv", path, "--out", tmp_path / "fits")
    assert found.exit_code == 0, found.output
    assert re.search(r"0\.5\s+1\d\d\s", found.stdout)
    assert (tmp_path / "fits" / "pareto.png").stat().st_size > 10_000
    as_json = critical("--from-csv", path, "--json")
    record = json.loads(as_json.stdout, parse_constant=pytest.fail)["goals"][1]
    assert record["goal"] == 0.5
    assert record["critical_batch_size"]["value"] == pytest.approx(16, rel=0.06)


def test_seeds_in_a_table_set_the_intervals(tmp_path):
    """The same runs with their seeds named and, as a mean of them, without."""
    factors = {0: 0.8, 1: 1.0, 2: 1.25}  # of B_crit
    rows = [
        {"batch_size": size, "seed": seed, "steps": 100 * (1 + 16 * factor / size)}
        for size in SIZES
        for seed, factor in factors.items()
    ]
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "seeds.csv", index=False)
    table.groupby("batch_size")["steps"].mean().to_csv(tmp_path / "means.csv")
    found = critical("--from-csv", tmp_path / "seeds.csv")
    assert found.exit_code == 0, found.output
    assert "assume that seeds are independent of one another" in found.stdout
    means = critical("--from-csv", tmp_path / "means.csv")
    said = " ".join(means.stdout.split())
    assert "independent between batch sizes, as seeds are not told apart" in said
    records = [
        json.loads(critical("--from-csv", tmp_path / f"{name}.csv", "--json").stdout)["goals"][0]
        for name in ("seeds", "means")
    ]
    lengths = [
        math.log(record["critical_batch_size"]["high"] / record["critical_batch_size"]["low"])
        for record in records
    ]
    # t of two degrees of freedom over ln .8, 0 and ln 1.25
    assert lengths[0] == pytest.approx(2 * 4.3027 * math.log(1.25) / math.sqrt(3), rel=0.02)
    assert lengths[1] < 0.05
    assert records[0]["num_seeds"] == 3
    assert records[0]["better"] in ("hyperbola", "exponent")
    assert isinstance(records[0]["remarks"], list)


def test_a_measurement_is_not_overwritten_by_a_table(tmp_path):
    path = tmp_path / "runs.csv"
    synthetic().to_csv(path, index=False)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "critical_batch.json").write_text("{}")
    found = critical("--from-csv", path, "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert "choose another --out" in found.output


def test_branches_need_whole_batches(checkpoint):
    found = critical("--method", "branch", checkpoint, "--bs", 4, "--bs", 8, "--bs", 90)
    assert found.exit_code == 2
    assert "batch size 90: there are 200 training examples" in found.output
    assert "give 50 at most" in found.output


def test_a_problem_without_test_examples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        FACTORY + "\n\nimport functools\n\npart = functools.partial(make_problem)\n"
    )
    found = critical("--problem", "own.py:part", "--goal-split", "test")
    assert found.exit_code == 2
    assert "has no test examples: give --goal-split train" in found.output


def test_unresolved_is_said_aloud(tmp_path):
    path = tmp_path / "runs.csv"
    pd.DataFrame({"batch_size": SIZES, "steps": [1000 / size for size in SIZES]}).to_csv(
        path, index=False
    )
    found = critical("--from-csv", path)
    assert found.exit_code == 0, found.output
    assert (
        "not resolved, steps fall as 1/B up to the largest batch size, 128: give larger ones"
        in " ".join(found.stdout.split())
    )


@pytest.mark.pictures
def test_branches_of_a_run(checkpoint, tmp_path):
    out = tmp_path / "branches"
    found = critical(
        "--method", "branch", checkpoint, "--examples", 400, "--seeds", 3, "--out", out
    )
    assert found.exit_code == 0, found.output
    assert "Branches of 400 examples" in found.stdout
    assert re.search(r"^\s*4\s+0\.1 ", found.stdout, re.MULTILINE)
    assert re.search(r"^\s*8\s+0\.2 ", found.stdout, re.MULTILINE)
    assert "Critical batch size" in found.stdout
    said = " ".join(found.stdout.split())
    assert re.search(r"By tolerance, as a share of the loss at B = 4: 1 %: .*10 %: ", said)
    content = json.loads((out / "branch.json").read_text())
    assert content["definition"] == "branch"
    assert [row["share"] for row in content["by_tolerance"]] == [0.01, 0.02, 0.05, 0.1]
    if content["at_base"]:
        assert "not resolved, as no loss beyond the smallest batch size's, 4," in said
    table = pd.read_csv(out / "branches.csv")
    assert len(table) == 3 * len(content["batch_sizes"])
    assert ((table["examples"] >= 400) & (table["examples"] < 400 + table["batch_size"])).all()
    assert max(content["batch_sizes"]) <= 50  # of 200 training examples and of branches of 400
    assert (out / "branches.png").exists()
    again = critical(
        "--method", "branch", checkpoint, "--examples", 400, "--seeds", 3, "--out", out, "--json"
    )
    repeated = json.loads(again.stdout, parse_constant=pytest.fail)
    assert repeated["critical_batch_size"] == content["critical_batch_size"]
    refused = critical("--method", "branch", checkpoint, "--examples", 500, "--out", out)
    assert refused.exit_code == 1
    assert "other settings (examples is 400 there" in refused.output


def test_branches_of_weights_from_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(FACTORY)
    model = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    own = ["--method", "branch", "weights.pt", "--problem", "own.py:make_problem"]
    sizes = ["--bs", 1, "--bs", 4, "--bs", 16]
    found = critical(*own, *sizes, "--lr", 0.02, "--examples", 128, "--seeds", 2)
    assert found.exit_code == 0, found.output
    assert re.search(r"^\s*16\s+0\.32 ", found.stdout, re.MULTILINE)
    assert "give --lr and --bs" in critical(*own).output
    assert "give --problem" in critical("--method", "branch", "weights.pt").output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bs", 1, "--bs", 2, "--bs", 4], "3 batch sizes (1, 2, 4)"),
        (["--bs", 0], "0 is not in the range"),
        (["--bs", "full"], "'full' is not a valid integer"),
        (["--goal", "low"], "'low' is not a valid float"),
        (["--goal", "nan"], "goal nan"),
        (["checkpoint.pt"], "a checkpoint goes with --method branch"),
        (["--method", "branch"], "give its file or run folder"),
        (["--method", "branch", "x.pt", "--goal", 1], "leave out --goal"),
        (["--method", "branch", "x.pt", "--width", 4], "leave out --width"),
        (["--lr", 0.1], "leave out --lr"),
        (["--from-csv", "x.csv", "--seeds", 3], "leave out --seeds"),
        (["--from-csv", "x.csv"], "x.csv cannot be read"),
        (["--problem", "os:nothing"], "has no function nothing"),
        (["--problem", "os:getcwd", "--width", 4], "leave out --width"),
        (["--scheduler", "tcp://x"], "--scheduler goes with --executor dask"),
        (["--factor", 1], "factor 1"),
        (["--seeds", 0], "num seeds 0"),
        (["--noise-examples", 3], "3 is not in the range"),
    ],
)
def test_bad_usage_gets_one_message(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = (
        critical(*arguments)
        if "--problem" in arguments or "--from-csv" in arguments
        else critical("--dataset", "digits", *arguments)
        if "--method" not in arguments
        else critical(*arguments)
    )
    assert found.exit_code == 2, found.output
    assert message in " ".join(found.output.replace("│", " ").split())
    assert "Traceback" not in found.output
    assert not (tmp_path / "runs").exists()


def test_goals_out_of_reach(tmp_path):
    found = critical(*SMALL, *FEW[:8], "--goal", 1e-9, "--epochs", 1, "--out", tmp_path / "out")
    assert found.exit_code == 1
    assert "the best loss seen is" in found.output
    assert "--goal, longer runs with --epochs" in found.output


def test_a_checkpoint_that_is_none(tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(b"nothing")
    found = critical("--method", "branch", path)
    assert found.exit_code == 1
    assert "Traceback" not in found.output


def test_the_help_shows_examples():
    found = critical("--help")
    assert "--from-csv runs.csv" in found.output
    assert "--preset mnist-paper" in found.output


def test_the_front_shows_every_run_and_the_fit():
    table = synthetic()
    table.loc[(table["batch_size"] == 1) & (table["goal"] == 0.5), "censored"] = 1
    fits = fit_goals(table)
    axes = Figure().subplots()
    fastest = fastest_runs(table)
    plot_fronts(axes, fastest, fits_table(fits))
    points = sum(len(line.get_xdata()) for line in axes.lines if line.get_linestyle() == "None")
    stars = sum(line.get_marker() == "*" and len(line.get_xdata()) == 1 for line in axes.lines)
    means = fastest.groupby(["goal", "batch_size"]).ngroups  # beside them, each single seed
    assert points == len(fastest) + means + stars
    assert stars == sum(fit.resolved for fit in fits.values())
    curve = next(line for line in axes.lines if line.get_linestyle() == "-")
    steps, examples = curve.get_data()
    fit = fits[1.0]
    product = (steps / fit.min_steps.value - 1) * (examples / fit.min_examples.value - 1)
    assert product == pytest.approx(np.ones(len(steps)), rel=1e-6)
    labels = axes.get_legend_handles_labels()[1]
    assert "not reached: a bound" in labels


def test_sizes_are_drawn_at_their_goals():
    fits = fits_table(fit_goals(synthetic()))
    axes = Figure().subplots()
    plot_critical_sizes(axes, fits, pd.DataFrame())
    (bars,) = [one for one in axes.containers if "crit" in one.get_label()]
    x, y = bars.lines[0].get_data()
    assert list(x) == [1.0, 0.5]
    assert list(y) == pytest.approx(fits["critical_batch_size"].tolist())
    left, right = axes.get_xlim()
    assert left > right  # the loss falls to the right


def test_a_size_that_is_not_resolved_is_a_bar_and_a_bound_a_triangle():
    fits = fits_table(fit_goals(synthetic()))
    fits["overhead_batch_size"] = math.nan
    fits[["overhead_batch_size_low", "overhead_batch_size_high"]] = [[2.0, 50.0], [7.0, math.inf]]
    axes = Figure().subplots()
    plot_critical_sizes(axes, fits, pd.DataFrame())
    (triangles,) = [
        line for line in axes.lines if line.get_marker() == "^" and len(line.get_xdata())
    ]
    assert (list(triangles.get_xdata()), list(triangles.get_ydata())) == ([0.5], [7.0])
    bars = [part for part in axes.collections if part.get_label().startswith("_child")]
    ends = [segment[:, 1].tolist() for part in bars for segment in part.get_segments()]
    assert [2.0, 50.0] in ends


def test_branches_that_diverged_are_marked():
    rows = [(8, 0.1, seed, 100, 1.0 + 0.01 * seed, 0) for seed in range(3)]
    rows += [(16, 0.2, seed, 100, 1.1, 0) for seed in range(3)] + [(32, 0.4, 0, 100, math.inf, 1)]
    table = pd.DataFrame(rows, columns=list(BRANCH_COLUMNS))
    axes = Figure().subplots()
    empty = {"value": None, "low": None, "high": None}
    summary = {"tolerance": 0.05, "critical_batch_size": empty}
    plot_branches(axes, table, branch_means(table), summary)
    (crosses,) = [line for line in axes.lines if line.get_marker() == "x"]
    assert list(crosses.get_xdata()) == [32]
