"""What a folder remembers of its fits."""

import numpy as np
import pandas as pd

from noisescale.studies.critical_batch import fits
from noisescale.studies.critical_batch.fits import remembered_fits


def test_fits_are_remembered_for_their_table_and_their_code_alone(tmp_path, monkeypatch):
    sizes = np.repeat([4, 16, 64, 256], 2)
    table = pd.DataFrame(
        {
            "goal": 1.0,
            "batch_size": sizes,
            "learning_rate": 0.1,
            "seed": np.tile([0, 1], 4),
            "steps": np.round(100 * (1 + 30 / sizes)),
            "censored": 0,
            "diverged": 0,
        }
    )
    made = []
    fit_goals = fits.fit_goals
    monkeypatch.setattr(fits, "fit_goals", lambda table: made.append(1) or fit_goals(table))
    first = remembered_fits(tmp_path, table)
    again = remembered_fits(tmp_path, table)
    assert len(made) == 1
    assert again[1.0].to_dict() == first[1.0].to_dict()
    assert str(again[1.0].runs) == str(first[1.0].runs)

    remembered_fits(tmp_path, table.assign(steps=2 * table["steps"]))
    assert len(made) == 2
    monkeypatch.setattr(fits, "_source_of_fits", lambda: b"other code")
    remembered_fits(tmp_path, table.assign(steps=2 * table["steps"]))
    assert len(made) == 3
