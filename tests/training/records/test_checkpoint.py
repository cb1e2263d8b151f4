import dataclasses
import os
import pickle

import pytest
import torch

from noisescale.errors import CheckpointError
from noisescale.problems.config import ProblemConfig
from noisescale.training.config import TrainConfig
from noisescale.training.records.checkpoint import load_checkpoint, save_checkpoint
from noisescale.training.trainer import train
from tests.helpers.problems import classification


@pytest.fixture
def checkpoint():
    return next(train(classification(), TrainConfig(batch_size=10, momentum=0.9, epochs=1)))


def test_what_is_loaded_is_what_was_saved(checkpoint, tmp_path):
    saved = dataclasses.replace(
        checkpoint, problem=ProblemConfig(dataset="digits"), diverged_at_step=3
    )
    save_checkpoint(saved, tmp_path / "checkpoint.pt")
    loaded = load_checkpoint(tmp_path)  # the folder stands for its checkpoint.pt
    for field in dataclasses.fields(saved):
        if field.name not in ("params", "buffers", "optimizer", "batches", "losses"):
            assert getattr(loaded, field.name) == getattr(saved, field.name)
    for name, value in saved.params.items():
        assert torch.equal(loaded.params[name], value)
    assert torch.equal(loaded.batches["generator"], saved.batches["generator"])
    assert torch.equal(loaded.losses, saved.losses)
    assert torch.equal(
        loaded.optimizer["state"][0]["momentum_buffer"],
        saved.optimizer["state"][0]["momentum_buffer"],
    )


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_named_as_such(checkpoint, tmp_path, keep):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(checkpoint, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match="damaged, cut short or of another kind"):
        load_checkpoint(path)


def test_a_damaged_parameter_is_noticed(checkpoint, tmp_path):
    """The file's own sums cover the parameters' bytes: no flipped bit changes a model silently."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(checkpoint, path)
    content = bytearray(path.read_bytes())
    position = content.find(checkpoint.params["0.weight"].numpy().tobytes())
    assert position > 0
    content[position + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.pt").write_text("not a checkpoint")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "state_dict.pt")
    torch.save(torch.zeros(3), tmp_path / "tensor.pt")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_checkpoint(tmp_path / "text.pt")
    for name in ("state_dict.pt", "tensor.pt"):
        with pytest.raises(CheckpointError, match="was not written by noisescale"):
            load_checkpoint(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file"):
        load_checkpoint(tmp_path / "absent.pt")


def test_no_code_in_a_file_is_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for name, content in {"raw.pt": pickle.dumps(Payload(), protocol=2), "torch.pt": None}.items():
        if content is None:
            torch.save(Payload(), tmp_path / name)
        else:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_format_or_with_other_fields_is_refused(checkpoint, tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(checkpoint, path)
    content = torch.load(path, weights_only=True)
    torch.save(content | {"version": 99}, path)
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(path)
    torch.save(content | {"training": content["training"] | {"unheard_of": 3}}, path)
    with pytest.raises(CheckpointError, match="unheard_of"):
        load_checkpoint(path)
    del content["step"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match="step"):
        load_checkpoint(path)
