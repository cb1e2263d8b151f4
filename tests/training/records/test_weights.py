"""Weights from other programs' files into a model."""

import copy
import json

import pytest
import torch
from torch import nn

from noisescale.errors import CheckpointError
from noisescale.training.config import TrainConfig
from noisescale.training.records.checkpoint import Checkpoint, save_checkpoint
from noisescale.training.records.weights import load_weights

safetensors = pytest.importorskip("safetensors.torch")


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
    "under another name": lambda state: {"net": state, "opt": {"state": {0: torch.zeros(2)}}},
    "deeper": lambda state: {"checkpoint": {"weights": prefixed(state, "module.")}, "step": 7},
    "averaged": lambda state: prefixed(state, "module.") | {"n_averaged": torch.tensor(5)},
    "twice, once of other shapes": lambda state: (
        prefixed(state, "student.")
        | {f"teacher.{name}": tensor[..., None] for name, tensor in state.items()}
    ),
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


class Wrapper(nn.Module):
    """Holds a model, as one that turns its outputs into what a loss takes."""

    def __init__(self, model) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"held": model})


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads_into_a_wrapper_whose_names_have_a_prefix(form, tmp_path):
    state = random_state()
    torch.save(FORMS[form](state), tmp_path / "weights.ckpt")
    model = Net()
    load_weights(Wrapper(model), tmp_path / "weights.ckpt")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_lower_precision_is_widened(tmp_path):
    state = {name: tensor.bfloat16() for name, tensor in random_state().items()}
    torch.save(state, tmp_path / "weights.pt")
    model = Net()
    load_weights(model, tmp_path / "weights.pt")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name].to(tensor.dtype))


def save_shards(state, folder, *, suffix=".safetensors"):
    """As save_pretrained does, in three files and an index."""
    name = {".safetensors": "model", ".bin": "pytorch_model"}[suffix]
    save = safetensors.save_file if suffix == ".safetensors" else torch.save
    folder.mkdir()
    files = [f"{name}-{number:05}-of-00003{suffix}" for number in (1, 2, 3)]
    where = {key: files[number % 3] for number, key in enumerate(state)}
    for file in files:
        save({key: state[key] for key in state if where[key] == file}, folder / file)
    index = folder / f"{name}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_shards_load_by_their_index_or_folder_and_no_shard_alone(suffix, tmp_path):
    state = FORMS["tied once"](random_state())
    index = save_shards(state, tmp_path / "model", suffix=suffix)
    for path in (index, tmp_path / "model"):
        model = Net()
        load_weights(model, path)
        assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)
    shard = next((tmp_path / "model").glob("*00001-of-00003*"))
    with pytest.raises(CheckpointError, match=r"is one of 3 files .* give their index, .*\.json"):
        load_weights(Net(), shard)
    shard.unlink()
    with pytest.raises(CheckpointError, match=r"names .*00001-of-00003.*, which is not beside it"):
        load_weights(Net(), index)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_of_a_model_loads(name, tmp_path):
    state = FORMS["tied once"](random_state())
    (safetensors.save_file if name.endswith("s") else torch.save)(state, tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    model = Net()
    load_weights(model, tmp_path)
    assert all(torch.equal(model.state_dict()[name], state[name]) for name in state)


def test_what_the_model_calls_superfluous_is_left_out(tmp_path):
    class Masked(Net):
        _keys_to_ignore_on_load_unexpected = (r"attn\.mask",)

    state = random_state()
    torch.save(state | {"submodule.attn.mask": torch.zeros(4)}, tmp_path / "old.pt")
    model = Masked()
    load_weights(model, tmp_path / "old.pt")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(CheckpointError, match=r"submodule\.attn\.mask"):
        load_weights(Net(), tmp_path / "old.pt")


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr"])
def test_tensors_that_are_not_dense_are_refused(layout, tmp_path):
    model = nn.Linear(3, 2)
    weight = model.weight.detach().to_sparse(layout=getattr(torch, layout))
    torch.save({"weight": weight, "bias": torch.zeros(2)}, tmp_path / "sparse.pt")
    with pytest.raises(CheckpointError, match=rf"weight is a {layout} tensor: save it dense"):
        load_weights(model, tmp_path / "sparse.pt")


def test_numbers_that_the_model_cannot_hold_are_refused(tmp_path):
    state = random_state()
    for change, message in (
        ({"submodule.0.bias": state["submodule.0.bias"] * 1j}, "bias is complex and the model's"),
        ({"submodule.0.bias": torch.zeros(4, dtype=torch.int8)}, "bias holds torch.int8, as quant"),
        ({"head.weight": torch.zeros(5, 4)}, "tokens.weight and head.weight are one tensor"),
    ):
        torch.save(state | change, tmp_path / "weights.pt")
        model = Net()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(CheckpointError, match=message):
            load_weights(model, tmp_path / "weights.pt")
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_that_fit_two_parts_of_a_model_are_refused(tmp_path):
    torch.save(random_state(), tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"more than one part of the model, under 'a\.', 'b"):
        load_weights(nn.ModuleDict({"a": Net(), "b": Net()}), tmp_path / "weights.pt")


def test_safetensors_and_our_own_checkpoints_load(tmp_path):
    save_file = safetensors.save_file
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
    torch.save(
        {"state_dict": random_state(), "hyper_parameters": Settings()}, tmp_path / "objects.ckpt"
    )
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "numbers.pt")
    torch.save({"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, tmp_path / "optimizer.pt")
    torch.save(Net(), tmp_path / "model.pt")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    whole = tmp_path / "whole.pt"
    torch.save(random_state(), whole)
    (tmp_path / "cut.pt").write_bytes(whole.read_bytes()[:700])
    (tmp_path / "cut.safetensors").write_bytes(b"\\x10\\0\\0")
    for name, message in (
        ("objects.ckpt", "holds Python objects .*Settings.*state_dict"),
        ("list.pt", "holds no state dict"),
        ("numbers.pt", "holds no state dict"),
        ("optimizer.pt", "holds no state dict"),
        ("model.pt", r"holds Python objects \(.*Net\) .* could run code: save .* state_dict"),
        ("empty.pt", "cut short"),
        ("empty.safetensors", "cannot be read as safetensors"),
        ("folder", "checkpoint.pt: no such file, nor model.safetensors"),
        ("config.json", "is no index of weights"),
        ("absent.index.json", "no such file"),
        ("cut.pt", "damaged, cut short"),
        ("cut.safetensors", "cannot be read as safetensors"),
        ("absent.pt", "no such file"),
        ("absent.safetensors", "no such file"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_weights(Net(), tmp_path / name)
