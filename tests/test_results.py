"""What every result shows in Python: at a glance, in a notebook, and as a table of pandas."""

import copy
import math
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from pandas.api.types import is_bool_dtype, is_float_dtype, is_integer_dtype, is_string_dtype

import noisescale
from noisescale.statistics.critical_batch.branches import (
    BRANCH_COLUMNS,
    branch_critical_batch,
    branch_tolerances,
)
from noisescale.statistics.display import MOST_LINES, WIDTH
from noisescale.statistics.stability.edge import edge_of
from noisescale.studies.critical_batch.results import analyse
from noisescale.training.records.tables import (
    BATCH_SIZE_COLUMNS,
    NOISE_COLUMNS,
    SHARPNESS_COLUMNS,
)
from tests.helpers.goal_tables import synthetic
from tests.helpers.markup import cells_of
from tests.helpers.problems import small_network
from tests.helpers.sweeps import CONFIG


def noise(**settings):
    problem = small_network(num_examples=60)
    return noisescale.measure_noise(problem, num_examples=40, **settings)


def noise_along_a_run():
    whole = noisescale.measure_noise(small_network(num_examples=60))
    return pd.concat([whole.to_frame()] * 3).assign(step=[0, 10, 20], batch_size=8)


def sharpness():
    options = noisescale.SharpnessOptions(top=3, bottom=2, trace=True, density=True, batch_size=4)
    return noisescale.measure_sharpness(small_network(), options=options)


def monitored():
    noise = noisescale.RunningNoise()
    for squared_norm, variance in np.random.default_rng(0).normal(9, 1, (20, 2)):
        noise.add(squared_norm, variance, num_examples=8)
    return noise.noise


def fit(**changes):
    table = synthetic(goals=(1.0,), seeds=2)
    table = table[np.isclose(table["learning_rate"], 0.5)]
    return noisescale.fit_critical_batch(
        table["batch_size"], table["steps"], seeds=table["seed"], **changes
    )


def goals():
    result = analyse(synthetic(goals=(1.0,)))
    (fit_of_goal,) = result.fits.values()
    return replace(result, fits=dict.fromkeys(np.geomspace(2, 0.01, 14).tolist(), fit_of_goal))


def sweep():
    rows = [
        {"batch_size": size, **edge_of(outcomes(0.1 * factor)).to_row(), "upper": 0.3}
        for factor, size in enumerate([*2 ** np.arange(13), "full"], 1)
    ]
    summary = {"labels": {"converged": 30, "diverged": 12, "slow": 0}, "num_cells": 42}
    boundary = pd.DataFrame(rows)
    return noisescale.SweepResult(
        config=CONFIG, cells=pd.DataFrame(), boundary=boundary, summary=summary
    )


def outcomes(edge):
    return [
        (seed, rate, rate > edge * 1.1**seed)
        for seed in range(3)
        for rate in np.geomspace(edge / 9, edge * 9, 20)
    ]


def branches():
    rows = [
        (size, 0.1 * size, seed, 4096, 1 + 0.01 * size + 0.001 * seed, int(size == 512))
        for size in 2 ** np.arange(10)
        for seed in range(3)
    ]
    table = pd.DataFrame(rows, columns=list(BRANCH_COLUMNS))
    return noisescale.BranchResult(
        table=table,
        critical_batch_size=branch_critical_batch(table, tolerance=0.05),
        by_tolerance=branch_tolerances(table, tolerance=0.05),
        at_base=False,
        summary={"examples": 4096, "start_loss": 1.2345, "notes": ["a note " * 40]},
    )


RESULTS = {
    "noise": lambda: noise(hessian=True, per_layer=True),
    "exact noise": lambda: noisescale.measure_noise(small_network(num_examples=60)),
    "monitor": monitored,
    "sharpness": sharpness,
    "constants": lambda: noisescale.measure_stability(small_network()),
    "fit": fit,
    "unresolved fit": lambda: noisescale.fit_critical_batch(
        [1, 2, 4, 8], [100, 60, 40, 30], censored=[True, True, False, False]
    ),
    "goals": goals,
    "recommendation": lambda: noisescale.recommend(noise_along_a_run()),
    "edge": lambda: edge_of(outcomes(0.2)),
    "sweep": sweep,
    "branches": branches,
}


@pytest.fixture(params=RESULTS, scope="module")
def result(request):
    return RESULTS[request.param]()


def test_a_result_is_taken_in_at_a_glance(result):
    text = repr(result)
    assert str(result) == f"{result}" == text
    lines = text.splitlines()
    assert 3 <= len(lines) <= MOST_LINES
    assert max(map(len, lines)) <= WIDTH
    assert "nan" not in text
    assert " at 0x" not in text


def test_a_notebook_shows_a_well_formed_table(result):
    cells = cells_of(result._repr_html_())
    assert cells[0][0] == "caption"
    assert sum(tag == "td" for tag, _ in cells) >= 2
    # all that is printed is there; what is wrapped or cut in text, in full
    shown = {text for _, text in cells}
    for line in repr(result).splitlines():
        if line.startswith("  ") and not line.startswith("  …") and "Note" not in repr(result):
            assert line.split("  ")[1] in shown


def test_a_frame_is_tidy(result):
    frame = result.to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) >= 1
    assert frame.columns.is_unique
    for name, column in frame.items():
        if name in {"parameter", "population", "reason", "definition", "assumes", "better", "aim"}:
            assert is_string_dtype(column), name
        elif name == "batch_size" and (column == "full").any():
            assert column.map(type).isin([int, np.int64, str]).all()
        else:
            kinds = (is_float_dtype, is_integer_dtype, is_bool_dtype)
            assert any(is_kind(column) for is_kind in kinds), (name, column.dtype)
    for name in frame:  # an estimate is never without its errors
        if name.endswith("_stderr"):
            value = name.removesuffix("_stderr")
            assert value in frame
            assert (f"{value}_low" in frame) or value == "loss"  # of branches' losses


def test_a_result_is_copied_and_pickled(result):
    for twin in (copy.copy(result), copy.deepcopy(result), pickle.loads(pickle.dumps(result))):
        assert type(twin) is type(result)
        assert repr(twin) == repr(result)


def test_a_frame_is_the_readers_own(result):
    first = result.to_frame()
    first[first.columns[0]] = 0
    assert not (result.to_frame()[first.columns[0]] == 0).all()


def test_a_frame_of_noise_is_rows_of_noise_csv():
    whole = noise(hessian=True, num_probes=4)
    frame = whole.to_frame()
    beside = {"step", "epoch", "batch_size", "learning_rate", "num_probes", "seconds", "reason"}
    assert list(frame) == [name for name in NOISE_COLUMNS if name not in beside]
    (row,) = frame.to_dict("records")
    assert row["simple_low"] == whole.simple.low
    assert row["full_high"] == whole.curvature.full.high
    assert row["hessian_examples"] == whole.curvature.hessian_examples
    assert row["noisiest_share"] == whole.noisiest_share
    both = pd.concat([frame, noise().to_frame()], ignore_index=True)
    assert math.isnan(both["full"][1])
    assert set(monitored().to_frame()) <= set(BATCH_SIZE_COLUMNS)


def test_a_frame_of_sharpness_has_the_columns_of_sharpness_csv():
    measured = sharpness()
    (row,) = measured.to_frame().to_dict("records")
    beside = {"step", "epoch", "learning_rate", "stable_sharpness", "seconds", "reason"}
    under = {name for name in SHARPNESS_COLUMNS if name.startswith("preconditioned_")}
    assert set(SHARPNESS_COLUMNS) - beside - under <= set(row)
    assert row["largest_eigenvalue"] == measured.eigenvalues[0].value.value
    assert row["largest_eigenvalue_3"] == measured.eigenvalues[2].value.value
    assert row["smallest_eigenvalue_2_residual"] == measured.eigenvalues[4].residual
    assert row["trace_stderr"] == measured.moments.trace.stderr
    assert row["converged"] is True


def test_a_frame_of_fits_has_a_row_for_each_goal():
    result = analyse(synthetic(goals=(1.0, 0.5)))
    frame = result.to_frame()
    assert frame["goal"].tolist() == [1.0, 0.5]
    fit_of_half = result.fits[0.5].to_frame()
    pd.testing.assert_frame_equal(
        frame.drop(columns="goal").iloc[[1]].reset_index(drop=True), fit_of_half
    )
    assert frame["critical_batch_size_low"][0] == result.fits[1.0].critical_batch_size.low


def test_what_cannot_be_resolved_says_so():
    text = repr(RESULTS["unresolved fit"]())
    assert "B_crit is not resolved: 2 of 4 batch sizes reach the goal" in text
    few = noisescale.measure_noise(small_network(num_examples=60), num_examples=4)
    assert not few.resolved
    assert "|G|² cannot be told from zero" in repr(few)
    loose = noisescale.measure_sharpness(
        small_network(), options=noisescale.SharpnessOptions(max_matvecs=2, rtol=1e-9)
    )
    assert "NOT CONVERGED" in repr(loose)
    assert "NOT CONVERGED" in repr(loose.pairs["largest"])


def test_showing_computes_nothing(monkeypatch):
    shown = [RESULTS[name]() for name in ("noise", "sharpness", "constants", "recommendation")]
    problem = small_network()
    shown += [noisescale.hessian_matvec(problem), noisescale.Objective(problem), problem]

    def fail(*arguments, **keywords):
        raise AssertionError("a model is called")

    monkeypatch.setattr(torch.nn.Module, "__call__", fail)
    for thing in shown:
        assert repr(thing)
