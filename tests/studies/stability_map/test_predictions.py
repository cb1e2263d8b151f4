"""What the predicted edges of a sweep are made of, where its runs start."""

from noisescale.problems.factory import factory_config
from noisescale.studies.jobs.cell import Cell
from noisescale.studies.stability_map.predictions import constants_at
from noisescale.training.config import TrainConfig
from tests.helpers import own_problems


def test_a_model_that_its_factory_leaves_in_training_mode_is_predicted(tmp_path):
    problem = factory_config(f"{own_problems.__file__}:with_dropout")
    cell = Cell(path=tmp_path / "cell", problem=problem, training=TrainConfig(batch_size=4))
    constants = constants_at(cell, tmp_path)
    assert constants.sharpness > 0
    assert constants_at(cell, tmp_path) == constants  # read back
