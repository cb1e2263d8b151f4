"""Weights from other programs' files into a model."""

import copy

import pytest
import torch
from torch import nn

from noisescale.errors import CheckpointError
from noisescale.training.config import TrainConfig
from noisescale.training.records.checkpoint import Checkpoint, save_checkpoint
from noisescale.training.records.weights import load_weights


class Settings:
    """What a training script might pickle beside the weights."""


class Net(nn.Module):
    """A part named as a wrapper's prefix, tied weights, buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.submodule = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.tokens = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.tokens.weight


def random_state():
    torch.manual_seed(1)
    model = Net()
    model.submodule[1].running_mean.normal_()
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


FORMS = {
    "plain": lambda state: state,
    "data parallel": lambda state: prefixed(state, "module."),
    "compiled": lambda state: prefixed(state, "_orig_mod."),
    "compiled within data parallel": lambda state: prefixed(state, "module._orig_mod."),
    "a compiled part": lambda state: {
        name.replace("submodule.", "submodule._orig_mod."): tensor for name, tensor in state.items()
    },
    "Lightning": lambda state: {
        "state_dict": prefixed(state, "net.") | {"metric.total": torch.zeros(1)},
        "epoch": 3,
        "pytorch-lightning_version": "2.5",
        "optimizer_states": [{"state": {}, "param_groups": []}],
    },
    "Lightning, compiled": lambda state: {"state_dict": prefixed(state, "net._orig_mod.")},
    "under model": lambda state: {"model": state, "step": 7},
    "tied once": lambda state: {
        name: tensor for name, tensor in state.items() if name != "head.weight"
    },
    "double precision": lambda state: {name: tensor.double() for name, tensor in state.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_file_loads(form, tmp_path):
    state = random_state()
    torch.save(FORMS[form](state), tmp_path / "weights.ckpt")
    torch.manual_seed(2)
    model = Net()
    load_weights(model, tmp_path / "weights.ckpt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert model.head.weight is model.tokens.weight


def test_safetensors_and_our_own_checkpoints_load(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    state = random_state()
    save_file(FORMS["tied once"](prefixed(state, "module.")) | {}, tmp_path / "w.safetensors")
    untied = {name: tensor for name, tensor in state.items() if name != "head.weight"}
    save_file(untied, tmp_path / "w.safetensors")
    buffers = {
        name: tensor
        for name, tensor in untied.items()
        if "running" in name or "num_batches" in name
    }
    checkpoint = Checkpoint(
        problem=None,
        training=TrainConfig(),
        step=1,
        examples_seen=1,
        seconds=0.0,
        params={name: tensor for name, tensor in untied.items() if name not in buffers},
        buffers=buffers,
        optimizer={},
        batches={},
    )
    save_checkpoint(checkpoint, tmp_path / "checkpoint.pt")
    for path in (tmp_path / "w.safetensors", tmp_path / "checkpoint.pt", tmp_path):
        model = Net()
        load_weights(model, path)
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_what_does_not_fit_is_listed_and_changes_nothing(tmp_path):
    state = random_state()
    wrong = {name: tensor for name, tensor in state.items() if name != "submodule.0.bias"}
    wrong |= {"extra.weight": torch.zeros(2, 2), "submodule.0.weight": torch.zeros(4, 9)}
    torch.save(wrong, tmp_path / "wrong.pt")
    model = Net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError) as raised:
        load_weights(model, tmp_path / "wrong.pt")
    for part in (
        "does not fit Net",
        "submodule.0.bias (4,) is missing",
        "extra.weight (2, 2) is not the model's",
        "submodule.0.weight has shape (4, 9) instead of (4, 3)",
    ):
        assert part in str(raised.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_two_copies_of_the_weights_are_not_chosen_between(tmp_path):
    state = random_state()
    ema = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    torch.save(
        {"state_dict": prefixed(ema, "ema.") | prefixed(state, "net.")}, tmp_path / "two.ckpt"
    )
    with pytest.raises(CheckpointError, match=r"more than once, under 'ema\.', 'net\.'"):
        load_weights(Net(), tmp_path / "two.ckpt")


def test_unreadable_files_are_named(tmp_path):
    pytest.importorskip("safetensors")
    torch.save(
        {"state_dict": random_state(), "hyper_parameters": Settings()}, tmp_path / "objects.ckpt"
    )
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    whole = tmp_path / "whole.pt"
    torch.save(random_state(), whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:700])
    (tmp_path / "cut.safetensors").write_bytes(b"\\x10\\0\\0")
    for name, message in (
        ("objects.ckpt", "holds Python objects .*Settings.*state_dict"),
        ("list.pt", "holds no state dict"),
        ("numbers.pt", "holds no state dict"),
        ("cut.pt", "damaged, cut short"),
        ("cut.safetensors", "cannot be read as safetensors"),
        ("absent.pt", "no such file"),
        ("absent.safetensors", "no such file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_weights(Net(), tmp_path / name)
