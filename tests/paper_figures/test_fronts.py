"""Fronts of many tasks: from measurements to tables, the shipped calibration and the picture."""

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import analysis.tables
from analysis.__main__ import main as commands
from analysis.noise import fronts
from noisescale.statistics.critical_batch.calibration import shipped
from paper_figures.__main__ import FIGURES

NUM_TASKS, SIZES = 12, (4, 16, 64, 256, 1024)


def measured():
    """Twelve tasks whose B_crit is known, and runs beside them whose 𝓑 is e^±.3 of 1.5 times it."""
    generator, steps, beside = np.random.default_rng(0), [], []
    for task in range(NUM_TASKS):
        critical = 20.0 * 1.4**task
        for seed in range(2):
            for size in SIZES:
                for times in (0.5, 1.0, 2.0):  # of the best rate, .1·√(B/4)
                    slower = 1 + 0.2 * np.log(times) ** 2
                    taken = 30 * slower * (1 + critical / size)
                    row = {"task": f"task{task:02}", "goal": 0.5, "batch_size": size, "seed": seed}
                    row |= {"learning_rate": times * 0.1 * (size / 4) ** 0.5}
                    steps.append(row | {"steps": taken * np.exp(0.02 * generator.normal())})
        own = 0.3 * generator.normal()
        for seed, size in enumerate((16, 64, 256)):
            for times in (0.25, 1.0, 2.0):
                rate = times * 0.1 * (size / 4) ** 0.5
                scale = 1.5 * critical * np.exp(own - 0.3 * np.log(times))
                row = {"task": f"task{task:02}", "goal": 0.5, "learning_rate": rate, "seed": seed}
                row |= {"two_batch": 3 * scale, "batch_size": size, "relative_loss": 0.2}
                row |= {"relative_decrease": 0.1 * times, "negative_curvature": 0.1}
                row |= {"optimizer": ("sgd", "momentum", "adaptive")[task % 3]}
                row |= {"noise_scale": scale, "quantity": "simple", "geometry": "plain"}
                is_language = task == 2
                row["units_per_example"] = 32.0 if is_language else np.nan
                row["sign"] = 5 * scale if is_language else np.nan
                beside.append(row)
                if is_language:  # whose own scale is twice the plain one
                    beside.append(row | {"noise_scale": 2 * scale, "geometry": "optimizer"})
    table = pd.DataFrame(steps).assign(censored=0, diverged=0)
    # of a task whose branches do equally well up to B = 16, and worse by a tenth for each doubling
    branches = [
        {"task": "task02", "goal": 0.5, "batch_size": size, "learning_rate": 0.1, "seed": seed}
        | {"examples": 1024, "diverged": 0}
        | {"loss": (0.4 + 0.0005 * seed) * (1 + 0.1 * max(0, np.log2(size / 16)))}
        for size in (1, 4, 16, 64, 256)
        for seed in range(3)
    ]
    return {
        "steps_to_goal": table,
        "beside": pd.DataFrame(beside),
        "branch_losses": pd.DataFrame(branches),
    }


@pytest.fixture(scope="module")
def tables():
    return {**measured(), **fronts.derived(measured())}


def test_fronts_are_fitted_and_rates_held_against_the_best(tables):
    fits = tables["fits"].set_index("task")["critical_batch_size"]
    assert fits.to_numpy() == pytest.approx(20.0 * 1.4 ** np.arange(NUM_TASKS), rel=0.1)
    predictions = tables["predictions"]
    plain = predictions[predictions["geometry"] == "plain"]
    assert len(plain) == NUM_TASKS * 9
    over = plain["rate_over_best"].to_numpy().reshape(-1, 3)
    assert over == pytest.approx(np.tile([0.25, 1, 2], (len(over), 1)), rel=0.15)


def test_a_language_model_is_told_in_tokens_beside_all_scales(tables):
    (row,) = tables["language"].to_dict("records")
    assert row["task"] == "task02"
    assert row["critical_batch_size"] == pytest.approx(20 * 1.4**2, rel=0.1)
    assert row["critical_batch_size_tokens"] == 32 * row["critical_batch_size"]
    assert row["ratio_plain"] == pytest.approx(2 * row["ratio_optimizer"])
    assert row["ratio_plain"] == pytest.approx(5 * row["ratio_sign"])
    assert row["ratio_plain"] == pytest.approx(row["critical_batch_size"] / row["plain"])
    assert row["exponent_held_out_error"] > 0


def test_branches_stand_beside_the_front(tables):
    rows = tables["branches"].set_index("tolerance")
    assert set(rows["task"]) == {"task02"}
    # a loss .02 above the smallest is met at two tenths of a doubling of 16, that is 5 %
    assert rows.loc[0.05, "branch"] == pytest.approx(16 * 2**0.5, rel=0.05)
    assert rows.loc[0.01, "branch"] < rows.loc[0.1, "branch"]
    critical = tables["fits"].set_index("task").loc["task02", "critical_batch_size"]
    assert rows["critical_batch_size"].to_numpy() == pytest.approx(critical)
    assert rows.loc[0.05, "ratio"] == pytest.approx(critical / rows.loc[0.05, "branch"], rel=1e-6)


def test_growth_is_the_slope_over_goals_with_the_seeds_error():
    """B_crit = 3·D^.5 at every goal; each seed's steps are e^±.02 off as a whole."""
    generator, rows = np.random.default_rng(1), []
    for seed in range(3):
        off = np.exp(0.02 * generator.normal())
        for goal, examples in ((0.5, 1e3), (0.4, 2e3), (0.3, 4e3)):
            critical = 3 * examples**0.5
            for size in (1, 4, 16, 64, 256, 1024):
                steps = off * examples / 2 * (1 / critical + 1 / size)
                row = {"goal": goal, "batch_size": size, "learning_rate": 0.1, "seed": seed}
                rows.append(row | {"task": "gpt", "steps": steps, "censored": 0, "diverged": 0})
    (row,) = fronts.growth_table(pd.DataFrame(rows), ["gpt"]).to_dict("records")
    assert row["exponent"] == pytest.approx(0.5, abs=0.02)
    assert row["exponent_low"] < 0.5 < row["exponent_high"]
    assert row["num_seeds"] == 3


def test_a_language_model_has_a_row_of_language_a_loss_and_one_of_growth():
    given = {
        name: pd.concat([own, own.assign(goal=0.4)], ignore_index=True)
        for name, table in measured().items()
        for own in [table[table["task"] == "task02"]]
    }
    given["steps_to_goal"]["steps"] *= np.where(given["steps_to_goal"]["goal"] == 0.4, 2, 1)
    made = fronts.derived(given)
    assert sorted(made["language"]["goal"]) == [0.4, 0.5]
    assert made["growth"]["task"].tolist() == ["task02"]


def test_the_model_finds_the_rate_s_part_and_intervals_cover(tables):
    models = tables["models"].set_index(["quantity", "model", "term"])
    assert models.loc[("simple", "search", "log_rate"), "coefficient"] == pytest.approx(
        0.3, abs=0.05
    )
    coverage = tables["coverage"]
    whole = coverage[coverage["tasks"] == "all"].set_index(["quantity", "model"]).sort_index()
    plain = whole.loc["simple"]
    assert plain.loc["search", "coverage"] >= 0.75  # of twelve tasks, ± .09
    assert plain.loc["search", "coverage_stderr"] > 0
    assert plain.loc["search", "coverage_95"] >= plain.loc["search", "coverage"]
    assert plain.loc["search", "off"] < plain.loc["as it is", "off"]
    assert plain.loc["search", "factor"] < plain.loc["constant", "factor"]
    # which is three times 𝓑 throughout: a fit of its own makes up for that
    two_batch = whole.loc[fronts.TWO_BATCH]
    assert two_batch.loc["as it is", "off"] > 2 * plain.loc["as it is", "off"]
    assert two_batch.loc["constant", "off"] == pytest.approx(plain.loc["constant", "off"])
    # the same in all rows here, so that they are no terms
    assert "negative_curvature" not in plain.loc["search", "terms"]
    parts = coverage[(coverage["model"] == "search") & (coverage["quantity"] == "simple")]
    assert parts.set_index("tasks")["num_tasks"].to_dict() == {
        **{"all": 12, "sgd": 4, "momentum": 4, "adaptive": 4, "no closed form": 12}
    }


def test_tables_become_a_picture(tables, tmp_path):
    (tmp_path / "fronts").mkdir()
    for name, rows in tables.items():
        rows.to_csv(tmp_path / "fronts" / f"{name}.csv", index=False, na_rep="nan")
    drawn = FIGURES["fronts"](tmp_path)
    drawn.draw_without_rendering()
    assert all(axes.has_data() for axes in drawn.axes)


def test_fronts_of_other_runs_are_added_to_the_committed_ones(tmp_path, monkeypatch):
    """So that tasks may be measured one by one; the tables are those of all measured together."""
    whole, last = measured(), f"task{NUM_TASKS - 1:02}"
    header = {"command": "a", "commit": "b", "machine": "c", "date": "d", "seeds": "e"}
    for name, table in whole.items():
        old = table[table["task"] != last].copy()
        old.loc[old["task"] == "task03", "goal"] = 0.9  # measured anew
        analysis.tables.write_committed_table(tmp_path / "fronts" / f"{name}.csv", old, header)
    new = {name: table[table["task"].isin(["task03", last])] for name, table in whole.items()}
    monkeypatch.setattr(analysis.tables, "DATA", tmp_path)
    parts = ("task", fronts.MEASURED)
    together = analysis.tables._added("fronts", lambda runs: new, fronts.again, parts, [])
    assert set(together) == {*whole, *fronts.derived(whole)}
    key = ["task", "goal"]
    fits, expected = (
        table.set_index(key).sort_index()["critical_batch_size"]
        for table in (together["fits"], fronts.derived(whole)["fits"])
    )
    pd.testing.assert_series_equal(fits, expected, rtol=1e-4)  # of six digits on disk
    assert len(together["beside"]) == len(whole["beside"])


@pytest.mark.slow
def test_one_command_makes_the_shipped_table_of_the_committed_fronts(tmp_path, monkeypatch):
    """Which is then what a run's B_crit is told by."""
    (tmp_path / "fronts").mkdir()
    header = {"command": "a", "commit": "b", "machine": "c", "date": "d", "seeds": "e"}
    for name, table in measured().items():
        analysis.tables.write_committed_table(tmp_path / "fronts" / f"{name}.csv", table, header)
    path = tmp_path / "shipped.csv"
    monkeypatch.setattr(analysis.tables, "DATA", tmp_path)
    monkeypatch.setattr(shipped, "FRONTS", path)
    command = analysis.tables.analysis(
        "fronts",
        fronts.tables,
        help="",
        reuses="steps_to_goal",
        again=fronts.again,
        ships={"predictions": path},
        version=fronts.VERSION,
    )
    result = CliRunner().invoke(command, [])
    assert result.exit_code == 0, result.output
    assert str(path) in result.output
    assert shipped.version(path) == fronts.VERSION
    assert shipped.calibrated_on() == f"{NUM_TASKS} tasks"
    assert "fronts" in commands.commands
    elsewhere = CliRunner().invoke(command, ["--out", str(tmp_path / "other")])
    assert elsewhere.exit_code == 0, elsewhere.output
    assert str(path) not in elsewhere.output
