import json
import math

import numpy as np
import pytest

from noisescale import SweepConfig, measure_noise
from noisescale.problems.config import ProblemConfig
from noisescale.training.config import TrainConfig
from noisescale.training.records.names import describe_problem, run_key, run_name
from tests.helpers.problems import small_network


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_size": 0}, "batch size 0: give a whole number of 1 or more"),
        ({"batch_size": -3}, "batch size -3"),
        ({"batch_size": 1.5}, "batch size 1.5"),
        ({"batch_size": True}, "batch size True"),
        ({"batch_size": "half"}, '"full" or "adaptive"'),
        ({"learning_rate": 0.0}, "learning rate 0.0: give a number above 0"),
        ({"learning_rate": -1.0}, "learning rate"),
        ({"learning_rate": math.nan}, "learning rate"),
        ({"learning_rate": math.inf}, "learning rate"),
        ({"optimizer": "lion"}, "optimizer 'lion': choose one of sgd, adam, adamw"),
        ({"momentum": 1.0}, "momentum 1.0"),
        ({"momentum": 0.9, "optimizer": "adam"}, "only sgd takes a momentum"),
        ({"weight_decay": -1e-3}, "weight decay"),
        ({"epochs": 0}, "epochs 0"),
        ({"max_steps": 0}, "max steps 0"),
        ({"seed": -1}, "seed -1"),
        ({"order_seed": 0.0}, "order seed 0.0"),
        ({"seed": True}, "seed True"),
        ({"learning_rate": 10**400}, "learning rate"),
        ({"nesterov": "no", "momentum": 0.9}, "nesterov 'no': give True or False"),
        ({"batch_size": "adaptive", "adaptive": {}}, "give an AdaptiveConfig"),
    ],
)
def test_a_training_setting_out_of_range_says_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        TrainConfig(**fields)


def test_numbers_of_numpy_are_those_of_python():
    """A loop over np.geomspace gives settings, with the key and the JSON of Python's numbers."""
    given = TrainConfig(batch_size=np.int64(8), learning_rate=np.float64(0.5), seed=np.int32(3))
    plain = TrainConfig(batch_size=8, learning_rate=0.5, seed=3)
    assert run_key(ProblemConfig(width=np.int64(16)), given) == run_key(
        ProblemConfig(width=16), plain
    )
    assert json.dumps(given.to_dict()) == json.dumps(plain.to_dict())
    sizes = SweepConfig(
        problem=ProblemConfig(), batch_sizes=np.array([8, 32]), lr_min=np.float32(1)
    )
    assert (sizes.batch_sizes, sizes.lr_min) == ((8, 32), 1.0)
    assert {type(size) for size in sizes.batch_sizes} == {int}
    assert measure_noise(small_network(), num_examples=np.int64(9)).num_examples == 9


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "cifar"}, "dataset 'cifar': choose one of mnist, fashion-mnist, digits"),
        ({"model": "vit"}, "model 'vit'"),
        ({"norm": "group"}, "norm 'group'"),
        ({"pixel_scale": "byte"}, "pixel scale 'byte'"),
        ({"width": 0}, "width 0"),
        ({"depth": -1}, "depth -1"),
        ({"num_train": 0}, "num train 0"),
        ({"label_noise": -0.1}, "label noise -0.1: give a share of the training labels"),
        ({"label_noise": 1.1}, "label noise 1.1"),
        ({"label_noise": math.nan}, "label noise nan"),
        ({"label_noise": True}, "label noise True"),
        ({"label_noise": 10**400}, "label noise 1"),
        ({"dataset": "text", "model": "gpt", "text": 3}, "text 3: give the name of a file"),
        ({"imbalance": 0.5}, "imbalance 0.5: give the images of the first class"),
        ({"imbalance": 1e9}, "imbalance 1000000000.0"),
        ({"imbalance": math.nan}, "imbalance nan"),
        ({"imbalance": 2, "dataset": "markov", "model": "gpt"}, "it is for images"),
        ({"label_noise": 0.1, "dataset": "markov", "model": "gpt"}, "it is for images"),
        ({"classes": 0}, "classes 0"),
        ({"classes": 1}, "classes 1: one class leaves nothing to learn"),
        ({"classes": 11}, "classes 11"),
        ({"classes": 3, "dataset": "markov", "model": "gpt"}, "it is for images"),
    ],
)
def test_a_problem_setting_out_of_range_says_what_is_allowed(fields, message):
    with pytest.raises(ValueError, match=message):
        ProblemConfig(**fields)


def test_configurations_survive_a_round_trip_and_refuse_unknown_fields():
    config = TrainConfig(batch_size="full", learning_rate=0.5, seed=7)
    assert TrainConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="TrainConfig has no field unheard_of"):
        TrainConfig.from_dict({"unheard_of": 3})


def test_what_came_later_is_stored_where_it_is_set_alone():
    assert not {"label_noise", "classes", "imbalance"} & set(ProblemConfig(label_noise=0).to_dict())
    config = ProblemConfig(label_noise=0.2, classes=5)
    assert config.to_dict()["label_noise"] == 0.2
    assert ProblemConfig.from_dict(config.to_dict()) == config
    assert describe_problem(config).startswith("mnist, 5 classes, 20 % wrong labels")


def test_equal_configurations_have_one_key():
    assert run_key(ProblemConfig(label_noise=1)) == run_key(ProblemConfig(label_noise=1.0))
    assert run_key(TrainConfig(learning_rate=1)) == run_key(TrainConfig(learning_rate=1.0))


def test_the_key_depends_on_what_differs_from_the_defaults_alone():
    # fixed for good: if a later default or field changed it, finished runs would be computed again
    assert run_key(ProblemConfig(), TrainConfig()) == "44136fa3"
    assert run_key(ProblemConfig(), TrainConfig(batch_size=32)) == "44136fa3"
    keys = {
        run_key(ProblemConfig(width=width), TrainConfig(seed=seed))
        for width in (8, 16)
        for seed in (0, 1)
    }
    assert len(keys) == 4
    assert run_name(ProblemConfig(), TrainConfig(batch_size=1)).startswith("mnist-mlp-bs1-lr0.01-")


def test_the_file_of_a_text_is_stored_as_its_name(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("to be or not to be")
    config = ProblemConfig(dataset="text", model="gpt", text=path)
    assert config == ProblemConfig(dataset="text", model="gpt", text=str(path))
    assert json.dumps(config.to_dict())
