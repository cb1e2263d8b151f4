"""What the pictures share: intervals, runs in one table, and files."""

import numpy as np
import pandas as pd
import pytest

from noisescale.plots.style import (
    by_run,
    checkpoint_positions,
    error_bars,
    finish,
    image,
    panels,
    plot_band,
)


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
