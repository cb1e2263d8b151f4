"""Muon and AdamW as one optimizer."""

import copy

import pytest
import torch
from torch import nn

from noisescale.training.config import TrainConfig
from noisescale.training.updates.muon import MuonWithAdamW

pytestmark = pytest.mark.skipif(
    not hasattr(torch.optim, "Muon"), reason="this torch has no torch.optim.Muon"
)


def stepped(model, optimizer):
    model.zero_grad()
    inputs = torch.linspace(-1, 1, 12).reshape(4, 3)
    model(inputs).square().sum().backward()
    optimizer.step()
    return [param.detach().clone() for param in model.parameters()]


def test_a_copy_trains_on_as_the_original_and_leaves_it_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    config = TrainConfig(optimizer="muon", learning_rate=0.01)
    optimizer = MuonWithAdamW(model, config)
    stepped(model, optimizer)
    other_model, other = copy.deepcopy((model, optimizer))
    before = [param.detach().clone() for param in model.parameters()]
    copied = stepped(other_model, other)
    for param, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(param, value)
    for one, expected in zip(copied, stepped(model, optimizer), strict=True):
        assert torch.equal(one, expected)
