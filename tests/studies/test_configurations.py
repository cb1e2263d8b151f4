"""What the configurations of all studies have in common."""

import pytest

from noisescale import ProblemConfig, TrainConfig
from noisescale.errors import SettingError
from noisescale.studies.critical_batch.config import CriticalBatchConfig
from noisescale.studies.recommend.config import RecommendConfig
from noisescale.studies.stability_map.config import SweepConfig


@pytest.mark.parametrize(
    "settings", [{"warmup": 10}, {"lr_schedule": "cosine"}, {"lr_schedule": "wsd"}, {"amp": "bf16"}]
)
@pytest.mark.parametrize("study", [CriticalBatchConfig, RecommendConfig, SweepConfig])
def test_a_rate_that_changes_and_mixed_precision_are_refused(study, settings):
    """Each run of a study has another length, and only plain runs are compared."""
    with pytest.raises(SettingError, match="leave warmup, lr_schedule and amp out"):
        study(problem=ProblemConfig(dataset="digits"), training=TrainConfig(**settings))
