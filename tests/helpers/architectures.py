"""Architectures drawn at random, of the parts that models are made of."""

import torch
import torch.nn.functional as F
from torch import nn

from noisescale.problems.problem import Examples, Problem

NUM_CLASSES, VOCABULARY, LENGTH = 3, 7, 5


class Draw:
    """Decisions by a seed."""

    def __init__(self, seed):
        self._generator = torch.Generator().manual_seed(seed)

    def one_of(self, *choices):
        return choices[int(torch.randint(len(choices), (), generator=self._generator))]


class Residual(nn.Module):
    """x + γ f(x), γ of the module's own."""

    def __init__(self, inner, shape):
        super().__init__()
        self.inner, self.gamma = inner, nn.Parameter(torch.randn(shape))

    def forward(self, inputs):
        return inputs + self.gamma * self.inner(inputs)


class Twice(nn.Module):
    """A layer used twice."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, inputs):
        return self.inner(torch.tanh(self.inner(inputs)))


class Learned(nn.Module):
    """A learned value where an input is negative."""

    def __init__(self, width):
        super().__init__()
        self.value = nn.Parameter(torch.randn(width))

    def forward(self, inputs):
        return torch.where(inputs < 0, self.value, inputs)


class Attention(nn.Module):
    """Self-attention in either layout."""

    def __init__(self, width, batch_first):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, inputs):
        hidden = inputs if self.batch_first else inputs.transpose(0, 1)
        hidden = self.attention(hidden, hidden, hidden)[0]
        return hidden if self.batch_first else hidden.transpose(0, 1)


class Recurrence(nn.Module):
    """The outputs of a recurrent layer."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, inputs):
        return self.layer(inputs)[0]


class Tokens(nn.Module):
    """Tokens and their places, the latter as a table or as a parameter."""

    def __init__(self, width, draw):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, width, padding_idx=draw.one_of(None, 0))
        self.table = draw.one_of(nn.Embedding(LENGTH, width), None)
        self.places = None if self.table else nn.Parameter(torch.randn(1, LENGTH, width))
        self.first = draw.one_of(None, nn.Parameter(torch.randn(1, 1, width)))

    def forward(self, tokens):
        places = self.places if self.table is None else self.table(torch.arange(LENGTH))
        hidden = self.tokens(tokens) + places
        if self.first is None:
            return hidden
        return torch.cat([self.first.expand(len(hidden), -1, -1), hidden], 1)


class TokenMean(nn.Module):
    """The mean over places."""

    def forward(self, inputs):
        return inputs.mean(1)


def vector_layer(draw, width):
    """A layer (B, ..., width) -> (B, ..., width)."""
    linear = nn.Linear(width, width, bias=draw.one_of(True, False))
    return draw.one_of(
        lambda: linear,
        lambda: nn.LayerNorm(width, elementwise_affine=draw.one_of(True, False)),
        lambda: nn.RMSNorm(width),
        lambda: nn.Tanh(),
        lambda: nn.PReLU(),
        lambda: Learned(width),
        lambda: Twice(linear),
        lambda: Residual(nn.Sequential(linear, nn.GELU()), (width,)),
        lambda: nn.utils.parametrizations.weight_norm(linear),
        lambda: nn.Sequential(linear, nn.ReLU(inplace=True)),
    )()


def vector_model(draw):
    width = 6
    layers = [vector_layer(draw, width) for _ in range(draw.one_of(2, 3, 4))]
    return nn.Sequential(*layers, nn.Linear(width, NUM_CLASSES)), torch.randn(9, width)


def image_layer(draw, channels):
    """A layer (B, channels, H, W) -> (B, channels, H', W')."""
    convolution = nn.Conv2d(
        channels,
        channels,
        3,
        stride=draw.one_of(1, 2),
        padding=1,
        groups=draw.one_of(1, 2),
        padding_mode=draw.one_of("zeros", "circular"),
        bias=draw.one_of(True, False),
    )
    return draw.one_of(
        lambda: convolution,
        lambda: nn.Conv2d(channels, channels, 2, padding="same", dilation=2),
        lambda: nn.ConvTranspose2d(channels, channels, 3, 2, 1, output_padding=1),
        lambda: nn.ConvTranspose2d(channels, channels, 2, groups=2),
        lambda: nn.BatchNorm2d(channels),
        lambda: nn.InstanceNorm2d(channels, affine=True),
        lambda: nn.GroupNorm(2, channels),
        lambda: nn.PReLU(channels),
        lambda: nn.Sequential(convolution, nn.ReLU(inplace=True)),
        lambda: Residual(nn.Conv2d(channels, channels, 3, padding=1), (channels, 1, 1)),
    )()


def image_model(draw):
    channels = 4
    layers = [image_layer(draw, channels) for _ in range(draw.one_of(2, 3))]
    head = nn.Linear(channels, NUM_CLASSES)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model, torch.randn(9, channels, 6, 6)


def sequence_layer(draw, width):
    """A layer (B, T, width) -> (B, T, width)."""
    return draw.one_of(
        lambda: vector_layer(draw, width),
        lambda: Attention(width, batch_first=draw.one_of(True, False)),
        lambda: nn.TransformerEncoderLayer(
            width, 2, 8, dropout=0, batch_first=True, norm_first=draw.one_of(True, False)
        ),
        lambda: Recurrence(nn.GRU(width, width, batch_first=True)),
        lambda: Recurrence(nn.LSTM(width, width // 2, 2, batch_first=True, bidirectional=True)),
        lambda: Recurrence(nn.RNN(width, width, batch_first=True, bias=False)),
    )()


def sequence_model(draw):
    width = 4
    layers = [sequence_layer(draw, width) for _ in range(draw.one_of(1, 2, 3))]
    model = nn.Sequential(Tokens(width, draw), *layers, TokenMean(), nn.Linear(width, NUM_CLASSES))
    return model, torch.randint(0, VOCABULARY, (9, LENGTH))


def architecture(seed):
    """A classification problem in float64, its model of parts that the seed draws."""
    draw = Draw(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, inputs = draw.one_of(vector_model, image_model, sequence_model)(draw)
        if inputs.is_floating_point():
            inputs = inputs.double()
        targets = torch.randint(0, NUM_CLASSES, (9,))
    return Problem(
        model=model.double().eval(),
        loss=lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
        train=Examples(inputs, targets),
    )
