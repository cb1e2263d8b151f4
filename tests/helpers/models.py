"""Models that put per-example gradients to the test, in float64, and the loop that defines them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisescale.problems.models import cross_entropy
from noisescale.problems.problem import Examples, Params, Problem
from tests.helpers.problems import classification

VOCABULARY, LENGTH, WIDTH = 11, 5, 12


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with GroupNorm around a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1, groups=2)
        self.norm = nn.GroupNorm(2, channels)
        self.second = nn.Conv2d(
            channels, channels, 3, padding="same", bias=False, padding_mode="circular"
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return F.relu(inputs + self.second(F.relu(self.norm(self.first(inputs)), inplace=True)))


class LanguageModel(nn.Module):
    """A causal transformer, tokens (B, T) -> logits (B, T, V)."""

    def __init__(self, *, tied: bool = True, own_positions: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        if own_positions:
            self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH))
        else:
            self.positions = nn.Embedding(LENGTH, WIDTH)
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, 3, 24, batch_first=True, dropout=0.0, norm_first=True
        )
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        places = (
            self.positions
            if isinstance(self.positions, Tensor)
            else self.positions(torch.arange(length))
        )
        hidden = self.tokens(tokens) + places
        mask = nn.Transformer.generate_square_subsequent_mask(length, dtype=hidden.dtype)
        return self.head(self.norm(self.layer(hidden, src_mask=mask)))


class FunctionalHead(nn.Module):
    """Uses its embedding's weight as the output layer's, without calling a module."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.hidden = nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.hidden(self.tokens(tokens))), self.tokens.weight)


class Repeated(nn.Module):
    """One layer used three times, and a scale of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.head = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        for _ in range(3):
            inputs = torch.tanh(self.layer(inputs)) * self.scale
        return self.head(inputs)


class Recurrent(nn.Module):
    """An LSTM, which torch.func.vmap cannot do, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.lstm = nn.LSTM(WIDTH, 7, batch_first=True)
        self.head = nn.Linear(7, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.lstm(self.tokens(tokens))[0])


class Routed(nn.Module):
    """Two experts, each of which sees the examples that are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = inputs.new_zeros(len(inputs), 3)
        for number, expert in enumerate(self.experts):
            (rows,) = ((inputs[:, 0] > 0).long() == number).nonzero(as_tuple=True)
            outputs = outputs.index_add(0, rows, expert(inputs[rows]))
        return outputs


class Sorted(nn.Module):
    """Reorders its batch on the way, by the data."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        order = inputs[:, 0].argsort()
        return self.head(torch.tanh(self.hidden(inputs[order]))[order.argsort()])


class Auxiliary(nn.Module):
    """A layer whose output is not used, and a weight of the model's own."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(6, 2)
        self.weight = nn.Parameter(torch.randn(6, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        self.unused(inputs)
        return inputs @ self.weight


def sequence_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of each sequence: (B, T, V), (B, T) -> (B,)."""
    return (
        F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        .view_as(targets)
        .mean(1)
    )


def _images(*layers: nn.Module) -> Problem:
    inputs = torch.randn(9, 4, 6, 6, dtype=torch.float64)
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3)).double()
    model(inputs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return Problem(
        model=model.eval(), loss=cross_entropy, train=Examples(inputs, torch.randint(0, 3, (9,)))
    )


def sequences(model: nn.Module) -> Problem:
    tokens = torch.randint(0, VOCABULARY, (9, LENGTH + 1))
    return Problem(
        model=model.double(), loss=sequence_loss, train=Examples(tokens[:, :-1], tokens[:, 1:])
    )


def _signals() -> Problem:
    """One-dimensional convolutions, layer norm over the length, regression with two outputs."""
    layers = [
        nn.Conv1d(3, 4, 3, stride=2, dilation=2, groups=1),
        nn.LayerNorm([4, 6]),
        nn.Tanh(),
        nn.Conv1d(4, 4, 2, groups=4),
        nn.Flatten(),
        nn.Linear(20, 2, bias=False),
    ]
    examples = Examples(torch.randn(9, 3, 15).double(), torch.randn(9, 2).double())
    return Problem(
        model=nn.Sequential(*layers).double(),
        loss=lambda outputs, targets: (outputs - targets).square().sum(1),
        train=examples,
    )


def _sorted() -> Problem:
    """The first examples in order, so that they tell nothing."""
    problem = classification(Sorted(), num_examples=9)
    order = problem.train.inputs[:4, 0].argsort()
    return replace(problem, train=problem.train.part(torch.cat([order, torch.arange(4, 9)])))


def _frozen() -> Problem:
    problem = classification(num_examples=9)
    problem.model[0].weight.requires_grad_(False)
    return problem


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "mlp": lambda: classification(num_examples=9),
    "frozen": _frozen,
    "in place": lambda: classification(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3)), num_examples=9
    ),
    "cnn": lambda: _images(
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
    ),
    "residual": lambda: _images(nn.Conv2d(4, 4, 1), ResidualBlock(4), ResidualBlock(4)),
    "transposed": lambda: _images(
        nn.ConvTranspose2d(4, 3, 2), nn.InstanceNorm2d(3, affine=True), nn.PReLU(3)
    ),
    "signals": _signals,
    "recurrent": lambda: sequences(Recurrent()),
    "routed": lambda: classification(Routed(), num_examples=9),
    "sorted": _sorted,
    "auxiliary": lambda: classification(Auxiliary(), num_examples=9),
    "transformer": lambda: sequences(LanguageModel()),
    "untied": lambda: sequences(LanguageModel(tied=False)),
    "own positions": lambda: sequences(LanguageModel(own_positions=True)),
    "functional head": lambda: sequences(FunctionalHead()),
    "repeated": lambda: classification(Repeated(), num_examples=9),
}


class Loop(NamedTuple):
    """By single-example backward passes: (n, L), (n, L), and by name."""

    squared_norms: Tensor
    projections: Tensor
    mean: Params


def loop(problem: Problem) -> Loop:
    """Per-example gradients by their definition, one backward pass each."""
    params = {
        name: param for name, param in problem.model.named_parameters() if param.requires_grad
    }
    gradients = []
    for index in range(problem.train.num_examples):
        example = problem.train.part(slice(index, index + 1))
        loss = problem.loss(problem.model(example.inputs), example.targets).sum()
        gradients.append(torch.autograd.grad(loss, list(params.values()), materialize_grads=True))
    means = [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]
    return Loop(
        torch.tensor([[part.square().sum() for part in one] for one in gradients]),
        torch.tensor(
            [
                [(part * mean).sum() for part, mean in zip(one, means, strict=True)]
                for one in gradients
            ]
        ),
        dict(zip(params, means, strict=True)),
    )
