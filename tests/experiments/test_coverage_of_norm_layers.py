"""The committed coverage of NormLayerMonitor's interval, recomputed in a small part."""

import numpy as np
import pandas as pd
import pytest

from experiments.coverage.norm_layers import CASES, TABLES, network, noise_scale_of, simulate

TABLE = pd.read_csv(TABLES / "norm_layers.csv", comment="#")


def test_the_truth_is_that_of_the_table():
    assert noise_scale_of(network(), CASES[0][0], 20_000) == pytest.approx(
        TABLE["simple"][0], rel=0.03
    )


def test_the_table_has_every_case_and_the_words_of_the_monitor_hold():
    columns = ["spread", "batch_size", "updates", "every"]
    assert [tuple(row) for row in TABLE[columns].to_numpy()] == list(CASES)
    told = TABLE[TABLE["resolved"] > 0.5]
    assert len(told) >= 2
    assert told["coverage"].between(0.945, 0.97).all()


@pytest.mark.statistical
def test_a_small_part_of_the_simulation_agrees():
    found = simulate(*CASES[1], num_draws=20)
    stored = TABLE.iloc[1]
    assert found["resolved"] == pytest.approx(stored["resolved"], abs=0.25)
    share, count = stored["coverage"], round(20 * found["resolved"])
    assert abs(found["coverage"] - share) < 3 * np.sqrt(share * (1 - share) / count) + 0.05
