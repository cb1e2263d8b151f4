"""Sharpness and noise along training: one chart, from a run's table or from measurements."""

import numpy as np
import pandas as pd
import pytest

from noisescale.plots.noise import noise_figure, noise_growth_figure
from noisescale.plots.sharpness import has_picture, measurements_figure, sharpness_figure
from tests.helpers.measurements import (
    estimate,
    noise_entries,
    noise_table,
    sharpness_entries,
    sharpness_table,
)


def lines(axes):
    """The points of every line with a name in the legend."""
    return {
        line.get_label(): np.column_stack([line.get_xdata(), line.get_ydata()]).tolist()
        for line in axes.lines
        if not line.get_label().startswith("_") and len(line.get_xdata())
    }


def test_sharpness_is_drawn_alike_from_a_table_and_from_measurements():
    (table,) = sharpness_figure(sharpness_table(), title="run").axes
    (entries,) = measurements_figure(sharpness_entries()).axes
    assert lines(table) == lines(entries)
    assert set(lines(table)) == {r"$\lambda_{\max}$", "batch sharpness", "limit of stability, 4"}
    assert lines(table)["batch sharpness"] == [[0, 0.5], [20, 1.5]]
    for axes in (table, entries):
        loose = [line for line in axes.lines if line.get_marker() == "o" and len(line.get_xdata())]
        assert [line.get_xdata().tolist() for line in loose] == [[10]]


def test_several_runs_have_lines_of_their_own_and_a_smallest_eigenvalue_is_drawn():
    entries = [*sharpness_entries("a"), *sharpness_entries("b")]
    entries[0]["eigenvalues"].append(
        {"which": "smallest", **estimate(-1.0), "converged": False},
    )
    (axes,) = measurements_figure(entries).axes
    assert {r"$\lambda_{\max}$, a", r"$\lambda_{\max}$, b", r"$\lambda_{\min}$"} <= set(lines(axes))


def test_a_checkpoint_that_could_not_be_measured_is_left_out():
    entries = sharpness_entries()
    entries[1] |= {"reason": "not finite", "eigenvalues": [], "batch_sharpness": None}
    (axes,) = measurements_figure(entries).axes
    assert lines(axes)[r"$\lambda_{\max}$"] == [[0, 1], [20, 3]]


def test_density_and_phi_have_panels_and_a_trace_alone_has_none():
    entry = sharpness_entries()[0] | {"eigenvalues": [], "batch_sharpness": None}
    assert not has_picture([entry])
    entry["density"] = {"grid": [0.0, 1.0], "density": [1.0, 0.5]}
    entry["phi"] = [{"space": "full", "epsilon": 1e-3, "history": [0.0, 1.0, 2.0]}]
    assert has_picture([entry])
    density, phi = measurements_figure([entry | {"step": None}]).axes
    assert list(lines(density)) == ["run/step-0.pt", "limit of stability, 4"]
    assert lines(phi) == {"run/step-0.pt, full, ε = 0.001": [[1, 1], [2, 2]]}


def test_a_run_that_diverged_at_once_is_drawn_without_a_warning():
    nothing = sharpness_table().assign(
        largest_eigenvalue=np.nan, batch_sharpness=np.nan, stable_sharpness=np.nan
    )
    sharpness_figure(nothing, title="run").draw_without_rendering()
    noise_growth_figure(
        noise_table().assign(simple=np.nan, simple_low=np.nan), title="run"
    ).draw_without_rendering()


def triangles(axes):
    return [
        np.column_stack([line.get_xdata(), line.get_ydata()]).tolist()
        for line in axes.lines
        if line.get_marker() == "^" and len(line.get_xdata())
    ]


def test_noise_is_drawn_alike_from_a_table_and_from_measurements():
    by_step, by_loss = noise_growth_figure(noise_table(), title="run").axes
    (entries,) = noise_figure(noise_entries()).axes
    for axes in (by_step, entries):
        (values,) = lines(axes).values()
        np.testing.assert_equal(values, [[0, 10], [10, np.nan], [20, 30]])
        assert triangles(axes) == [[[10, 5]]]
        names = axes.get_legend_handles_labels()[1]
        assert names == [r"$B_{\mathrm{simple}}$", "not resolved: a lower bound"]
    assert triangles(by_loss) == [[[1, 5]]]
    assert entries.get_ylabel() == "noise scale (examples, dataset population)"


def test_steps_begin_at_zero_on_their_axis():
    by_step, _ = noise_growth_figure(noise_table(), title="run").axes
    left, right = by_step.get_xlim()
    assert -0.2 < left < 0
    assert right > 20
    assert by_step.xaxis.get_majorticklocs()[0] == 0


def test_one_checkpoint_has_its_eigenvalues_with_intervals_and_the_limit():
    entry = sharpness_entries()[0] | {"stable_sharpness": 1.5}
    entry["eigenvalues"] = [
        {"which": "largest", **estimate(1.0, low=0.8, high=1.4), "converged": True},
        {"which": "smallest", **estimate(-0.5), "converged": False},
    ]
    (axes,) = measurements_figure([entry]).axes
    largest, smallest, batch = axes.containers
    (segments,) = [collection.get_segments() for collection in largest.lines[2]]
    assert segments[0].tolist() == [[0, 0.8], [0, 1.4]]
    assert [bar.lines[0].get_ydata().tolist() for bar in (smallest, batch)] == [[-0.5], [0.5]]
    assert smallest.lines[0].get_fillstyle() == "none"
    assert "limit of stability, 1.5" in axes.get_legend_handles_labels()[1]
    (far,) = measurements_figure([entry | {"stable_sharpness": 40.0}]).axes
    assert far.get_ylim()[1] < 2
    assert "limit of stability, 40: beyond the panel" in far.get_legend_handles_labels()[1]


def test_the_runs_of_a_table_have_lines_of_their_own():
    table = pd.concat([noise_table().assign(run=f"seed {seed}") for seed in (0, 1)])
    by_step, _ = noise_growth_figure(table, title="runs").axes
    label = r"$B_{\mathrm{simple}}$"
    assert set(lines(by_step)) == {f"{label}, seed 0", f"{label}, seed 1"}


@pytest.mark.parametrize("key", ["parameter", "class"])
def test_parts_have_intervals_and_bounds_are_arrows(key):
    rows = [
        {key: 0, "simple": 10.0, "simple_low": 8.0, "simple_high": 15.0},
        {key: 1, "simple": 20.0, "simple_low": None, "simple_high": None},
        {key: 2, "simple": None, "simple_low": 5.0, "simple_high": None},
    ]
    name = "per_layer" if key == "parameter" else "per_class"
    _, axes = noise_figure([noise_entries()[0] | {name: rows}]).axes
    (bars,) = axes.containers
    (segments,) = [collection.get_segments() for collection in bars.lines[2]]
    assert segments[0].tolist() == [[8, 0], [15, 0]]
    assert segments[1].tolist() == [[20, 1], [20, 1]]
    arrows = [line for line in axes.lines if line.get_marker() == ">"]
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in arrows] == [
        ([5.0], [2])
    ]


def test_signal_and_noise_of_one_checkpoint_meet_at_its_noise_scale():
    (axes,) = noise_figure(noise_entries()[:1]).axes
    named = {line.get_label(): line for line in axes.lines}
    noise = named[r"noise, $\mathrm{tr}\,\Sigma/B$"]
    at_scale = np.interp(10.0, noise.get_xdata(), noise.get_ydata())
    assert at_scale == pytest.approx(0.2, rel=0.01)
    assert named[r"signal, $|G|^2$"].get_ydata() == [0.2, 0.2]
    assert r"$B_{\mathrm{simple}}$ = 10 (8–12)" in named


def test_the_norms_of_one_checkpoint_are_shares_of_examples_and_of_the_noise():
    bins = [
        {"low": 1.0, "high": 2.0, "examples": 3, "variance_share": 0.1},
        {"low": 2.0, "high": 4.0, "examples": 1, "variance_share": 0.9},
    ]
    more = {"gradient_norms": bins, "num_examples": 4, "noisiest_share": 0.9}
    _, axes = noise_figure([noise_entries()[0] | more | {"effective_examples": 1.2}]).axes
    examples, noise = [patch.get_data() for patch in axes.patches]
    assert examples.values.tolist() == [75, 25]
    assert noise.values.tolist() == [10, 90]
    assert examples.edges.tolist() == [1, 2, 4]
    labels = axes.get_legend_handles_labels()[1]
    assert r"noisiest 1 %: 90 % of $\mathrm{tr}\,\Sigma$" in labels
    assert r"$n_{\mathrm{eff}}$ = 1.2 of 4" in labels
