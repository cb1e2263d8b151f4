"""When updates are replayed, by a graph that a CPU can run: one that calls the update again."""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from noisescale.training.updates.cuda_graph import WARM_UP, CudaGraphUpdate, _Captured

BATCHES = 12


class Net(nn.Module):
    """Linear; `calls` counts its forward passes where it is to."""

    def __init__(self, *, counts=False):
        super().__init__()
        self.linear = nn.Linear(4, 3).double()
        self.counts, self.calls = counts, 0

    def forward(self, inputs):
        self.calls += self.counts
        return self.linear(inputs) * (1 + self.calls)


class Run:
    """Training on twelve batches, its replays counted."""

    def __init__(self, monkeypatch, *, counts=False, error=None, factor=1.0):
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(BATCHES, 4, generator=generator, dtype=torch.float64)
        torch.manual_seed(0)
        self.model = Net(counts=counts)
        self.start = copy.deepcopy(self.model)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)
        self.replays = 0
        for name, stand_in in {
            "Stream": lambda device: None,
            "graph_pool_handle": lambda: None,
            "device": lambda device: contextlib.nullcontext(),
            "get_rng_state": lambda device: torch.get_rng_state(),
            "set_rng_state": lambda state, device: torch.set_rng_state(state),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(
            CudaGraphUpdate, "_on_side_stream", lambda self, update, indices: update(indices)
        )

        def capture(graphs, update, indices):
            if error is not None:
                self.model(self.inputs).sum().backward()  # gradients that are never computed
                raise error
            static, loss = indices.clone(), torch.zeros((), dtype=torch.float64)

            def replay():
                self.replays += 1
                loss.copy_(update(static, factor=factor))

            return _Captured(SimpleNamespace(replay=replay), static, loss)

        monkeypatch.setattr(CudaGraphUpdate, "_capture", capture)
        self.graphs = CudaGraphUpdate(torch.device("cpu"), self.model, self.optimizer)

    def update(self, indices, *, factor=1.0, model=None, optimizer=None):
        model, optimizer = model or self.model, optimizer or self.optimizer
        loss = factor * model(self.inputs[indices]).square().sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    def check(self):
        """Every loss, and the parameters at the end, against the update called by itself."""
        optimizer = torch.optim.SGD(self.start.parameters(), lr=0.1, momentum=0.9)
        for number in range(BATCHES):
            indices = torch.tensor([number])
            expected = self.update(indices, model=self.start, optimizer=optimizer)
            assert torch.equal(self.graphs(self.update, indices), expected)
        for param, expected in zip(self.model.parameters(), self.start.parameters(), strict=True):
            assert torch.equal(param, expected)


def test_updates_are_replayed_from_the_fourth_on(monkeypatch):
    run = Run(monkeypatch)
    run.check()
    assert run.replays == BATCHES - WARM_UP
    assert run.graphs.note is None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ({"counts": True}, "the model keeps account of its calls"),
        (
            {"error": RuntimeError("operation not permitted when stream is capturing")},
            "an update cannot be captured (operation not permitted",
        ),
        ({"factor": 1.001}, "a replayed update is another one"),
    ],
)
def test_what_a_graph_would_do_otherwise_is_not_replayed(kind, reason, monkeypatch):
    run = Run(monkeypatch, **kind)
    run.check()
    assert run.replays <= 1
    assert reason in run.graphs.note
