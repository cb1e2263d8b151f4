"""Problems of the user's own, from a module or a file."""

import sys

import pytest
import torch

from noisescale.errors import SettingError
from noisescale.problem import as_examples, load_problem, part_of

SOURCE = """
import torch
from noisescale import Examples, Problem

def make_problem():
    examples = Examples(torch.randn(8, 3), torch.zeros(8))
    loss = lambda outputs, targets: (outputs[:, 0] - targets) ** 2
    return Problem(model=torch.nn.Linear(3, 1), loss=loss, train=examples)

def fails():
    raise FileNotFoundError("no data in /nowhere")

def returns_a_model():
    return torch.nn.Linear(3, 1)

def takes_arguments(path):
    pass

constant = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "a_problem.py").write_text(SOURCE)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "another_problem.py").write_text(SOURCE)
    yield tmp_path
    for name in ("a_problem", "another_problem"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["a_problem:make_problem", "a_problem.py:make_problem"])
def test_a_factory_is_found_by_module_or_file(here, name):
    assert load_problem(name).train.num_examples == 8
    assert load_problem("below/another_problem.py:make_problem").train.num_examples == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a_problem", "give module:factory or file.py:factory"),
        ("a_problem:", "give module:factory"),
        ("absent:make_problem", "cannot be made: ModuleNotFoundError: No module named 'absent'"),
        ("absent.py:make_problem", "cannot be made: ModuleNotFoundError"),
        ("a_problem:absent", "has no function absent"),
        ("a_problem:constant", "has no function constant"),
        ("a_problem:fails", "cannot be made: FileNotFoundError: no data in /nowhere"),
        ("a_problem:takes_arguments", "cannot be made: TypeError"),
        ("a_problem:returns_a_model", "gives a Linear: return noisescale.Problem"),
    ],
)
def test_what_is_wrong_with_a_factory_is_said(here, name, message):
    with pytest.raises(SettingError, match=message):
        load_problem(name)


def test_parts_of_data_sets_come_in_the_order_asked_for():
    inputs, targets = torch.arange(10.0).unsqueeze(1), torch.arange(10)
    data = torch.utils.data.TensorDataset(inputs, targets)
    part = part_of(data, torch.tensor([7, 2]))
    assert part.targets.tolist() == [7, 2]
    assert torch.equal(as_examples(data).inputs, inputs)
