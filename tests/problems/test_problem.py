"""Problems of the user's own, from a module or a file."""

import sys

import pytest
import torch

from noisescale.errors import NoisescaleError, SettingError
from noisescale.problems.config import FactoryConfig
from noisescale.problems.factory import build_own_problem, load_problem
from noisescale.problems.problem import Examples, Problem, as_examples
from noisescale.problems.sampling import part_of, select
from tests.helpers.factory_source import SOURCE


class Items(torch.utils.data.Dataset):
    """A map-style data set of a list."""

    def __init__(self, items) -> None:
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


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
        ("absent.py:make_problem", "there is no file absent.py"),
        ("a_problem:exits", "cannot be made: SystemExit: 3"),
        ("a_problem:no_model", "its model must be a torch.nn.Module"),
        ("a_problem:absent", "has no function absent"),
        ("a_problem:constant", "has no function constant"),
        ("a_problem:fails", "cannot be made: FileNotFoundError: no data in /nowhere"),
        ("a_problem:takes_arguments", "takes path, which nobody gives it: give it a default"),
        ("a_problem:returns_a_model", "gives a Linear: return noisescale.Problem"),
    ],
)
def test_what_is_wrong_with_a_factory_is_said(here, name, message):
    with pytest.raises(SettingError, match=message):
        load_problem(name)


def test_files_of_one_name_are_told_apart(here):
    for folder, size in (("one", 3), ("other", 7)):
        (here / folder).mkdir()
        source = SOURCE.replace("(3, 1)", f"({size}, 1)").replace("8, 3", f"8, {size}")
        (here / folder / "json.py").write_text(source)
    for folder, size in (("one", 3), ("other", 7)):
        assert load_problem(f"{folder}/json.py:make_problem").model.in_features == size


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Examples(torch.zeros(20, 3), torch.zeros(10)), "20 inputs but 10 targets"),
        (Examples(torch.zeros(0, 3), torch.zeros(0)), "a split of 0 examples"),
        (torch.utils.data.TensorDataset(torch.zeros(0, 3), torch.zeros(0)), "split of 0 examples"),
        (Items([]), "a split of 0 examples"),
        (torch.utils.data.DataLoader([1]), "holds an input and no target"),
        ((torch.zeros(2, 3), torch.zeros(2)), r"tuple: give noisescale.Examples\(inputs, targets"),
        (Items([(torch.zeros(2), 0), (torch.zeros(3), 0)]), "of equal shapes throughout"),
        (Items([(torch.zeros(2),)] * 2), "holds an input and no target: give pairs"),
        (Items([{"x": torch.zeros(2), "z": 0}] * 2), "a dict of x, z: .* target as one of lab"),
    ],
)
def test_data_that_cannot_be_used_are_refused(data, message):
    problem = Problem(
        model=torch.nn.Linear(3, 1), loss=torch.nn.MSELoss(reduction="none"), train=data
    )
    with pytest.raises(NoisescaleError, match=message):
        select(problem)


def test_a_number_of_examples_is_a_whole_number():
    examples = Examples(torch.zeros(9, 3), torch.zeros(9))
    problem = Problem(model=torch.nn.Linear(3, 1), loss=torch.abs, train=examples)
    with pytest.raises(SettingError, match=r"num examples 2\.5: give a whole number"):
        select(problem, num_examples=2.5)


def test_parts_of_data_sets_come_in_the_order_asked_for():
    inputs, targets = torch.arange(10.0).unsqueeze(1), torch.arange(10)
    data = torch.utils.data.TensorDataset(inputs, targets)
    part = part_of(data, torch.tensor([7, 2]))
    assert part.targets.tolist() == [7, 2]
    assert torch.equal(as_examples(data).inputs, inputs)


def test_a_factory_may_give_data_of_any_kind(here):
    (here / "datasets.py").write_text(
        "import torch\nfrom torch import nn\nfrom noisescale import Problem\n"
        "class Data(torch.utils.data.Dataset):\n"
        "    def __len__(self):\n        return 6\n"
        "    def __getitem__(self, index):\n"
        "        return {'input': torch.full((3,), float(index)), 'label': index % 2}\n"
        "def make():\n"
        "    loss = nn.CrossEntropyLoss(reduction='none')\n"
        "    return Problem(model=nn.Linear(3, 2), loss=loss, train=Data())\n"
    )
    problem = build_own_problem(FactoryConfig(factory="datasets.py:make", source=""), device="meta")
    assert problem.train.inputs["input"].shape == (6, 3)
    assert problem.train.device.type == "meta"
