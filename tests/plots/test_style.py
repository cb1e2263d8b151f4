"""What the pictures share: intervals, runs in one table, and files."""

import numpy as np
import pandas as pd
import pytest

from noisescale.plots.style import (
    PlainLogLocator,
    by_run,
    checkpoint_positions,
    count_axis,
    error_bars,
    finish,
    image,
    measured_title,
    number_text,
    one_legend,
    panels,
    plot_band,
)
from tests.helpers.pictures import faults


def test_error_bars_reach_from_the_value_to_its_ends_and_skip_what_is_open():
    values = pd.Series([2.0, 2.0, 2.0])
    low, high = pd.Series([1.0, np.nan, 1.5]), pd.Series([4.0, 3.0, np.inf])
    assert error_bars(values, low, high).tolist() == [[1, 0, 0.5], [2, 1, 0]]


def test_a_band_point_without_neighbours_has_an_error_bar():
    _, (axes,) = panels(1, width=2, height=2)
    low = pd.Series([1.0, 2.0, np.nan, 3.0, np.nan])
    plot_band(axes, pd.Series(range(5)), low, low + 1, color="black")
    _, bars = axes.collections
    (segment,) = bars.get_segments()
    assert segment.tolist() == [[3, 3], [3, 4]]


def test_each_run_has_its_line_style_and_name_where_there_are_several():
    table = pd.DataFrame({"run": ["b", "a", "b"], "step": [1, 2, 3]})
    (first, solid, name), (second, dashed, other) = by_run(table)
    assert first["step"].tolist() == [1, 3]
    assert second["step"].tolist() == [2]
    assert (solid, name, dashed, other) == ("-", ", b", "--", ", a")
    ((rows, _, unnamed),) = by_run(table.drop(columns="run"))
    assert len(rows) == 3
    assert unnamed == ""
    ((_, _, alone),) = by_run(table[table["run"] == "b"])
    assert alone == ""


def test_checkpoints_of_unknown_step_are_counted():
    entries = [{"run": "a", "step": 5}, {"run": "a", "step": 9}]
    table, counted = checkpoint_positions(entries)
    assert table["step"].tolist() == [5, 9]
    assert counted == "step"
    table, counted = checkpoint_positions([*entries, {"run": "b.pt", "step": None}])
    assert table["step"].tolist() == [0, 1, 2]
    assert len(set(table["run"])) == 1
    assert counted == "checkpoint"


@pytest.mark.parametrize(
    ("format", "begins"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")]
)
def test_an_image_is_of_the_format_asked_for(format, begins):
    figure, (axes,) = panels(1, width=2, height=2, title="title")
    finish(axes, "x", "y")  # no name, no legend, no warning
    assert axes.get_legend() is None
    assert image(figure, format).startswith(begins)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.03, "0.03"),
        (70, "70"),
        (20_000, "20,000"),
        (1e6, "$10^{6}$"),
        (3e-5, r"$3\times 10^{-5}$"),
    ],
)
def test_numbers_at_ticks_are_plain_as_long_as_they_are_short(value, text):
    assert number_text(value) == text


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (1, 1000, [1, 10, 100, 1000]),
        (55, 80, [60, 70, 80]),
        (8, 90, [10, 20, 50]),
        (2, 400, [3, 10, 30, 100, 300]),
        (1e-8, 1e8, [1e-8, 1e-5, 1e-2, 1e1, 1e4, 1e7]),
        (-0.15, 40, [0, 1, 3, 10, 30]),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_few_and_round(low, high, ticks):
    found = PlainLogLocator().tick_values(low, high)
    assert found[(found >= low) & (found <= high)].tolist() == pytest.approx(ticks)


def test_titles_say_what_was_measured():
    entry = {"reason": None, "step": 9, "num_examples": 5, "population_size": 9, "split": "train"}
    named = entry | {"problem": "digits, MLP", "batch_size": 8, "learning_rate": 0.5}
    assert measured_title([named]) == (
        "digits, MLP, B = 8, learning rate 0.5, step 9, 5 of 9 train examples"
    )
    several = [named, named | {"batch_size": 16}]
    assert measured_title(several) == (
        "digits, MLP, learning rate 0.5, 2 checkpoints, 5 of 9 train examples"
    )
    sharpness = named | {"eigenvalues": [], "trained_batch_size": 4}  # its batch_size is another
    assert "B = 4" in measured_title([sharpness])
    assert measured_title([{"reason": None, "step": None, "checkpoint": "w.pt"}]) == "w.pt"


FAULTY = {
    "it is empty": lambda axes: None,
    "a legend lies on the data": lambda axes: axes.plot([1, 2], label="a") and axes.legend(),
    "a count below zero": lambda axes: axes.plot([-1, 0, 1], [1, 2, 3]),
    "overlap": lambda axes: axes.set_xticks([1, 1.001], ["one", "two"]) and axes.plot([1, 2]),
    "small numbers as powers of ten": lambda axes: axes.loglog([20, 80], [1, 9]),
    "is cut off": lambda axes: axes.plot([1, 2]) and axes.figure.text(0.95, 0.5, "far away"),
    "in 5.0 points": lambda axes: axes.plot([1, 2]) and axes.text(0, 1, "small", fontsize=5),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_the_rules_of_every_figure_find_what_they_are_for(fault):
    figure, (axes,) = panels(1, width=4, height=3)
    FAULTY[fault](axes)
    axes.set(xlabel="step", ylabel="loss")
    assert fault in " ".join(faults(figure))


def test_a_good_figure_has_no_faults():
    figure, panel_axes = panels(2, width=4, height=3, title="B = 32")
    for axes in panel_axes:
        axes.plot([0, 3, 500], [70, 60, 80], label="measured")
        axes.set_yscale("log")
        count_axis(axes)
        finish(axes, "step", "noise scale (examples)")
    assert faults(figure) == []
    one_legend(figure)
    assert faults(figure) == []
    assert len(figure.legends) == 1
    assert all(axes.get_legend() is None for axes in panel_axes)
