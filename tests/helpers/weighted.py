"""Small problems whose loss is a mean over all tokens of a batch, padding left out."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from noisescale.problems.problem import Examples, Problem

LENGTH, VOCABULARY = 6, 5


class Language(nn.Module):
    """A language model without any mixing of examples."""

    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, 4)
        self.mix = nn.Linear(4, 3)
        self.head = nn.Linear(3, VOCABULARY)

    def forward(self, tokens):
        history = self.token(tokens).cumsum(1)  # (B, T, 4), of what came before
        return self.head(self.mix(history).tanh())  # (B, T, V)


def count(labels):
    """The tokens of each sequence that are not padding (B,)."""
    return (labels != -100).sum(1)


def loss(logits, labels):
    """The mean over each sequence's tokens (B,); 0 of a sequence of none."""
    each = cross_entropy(logits.mT, labels, ignore_index=-100, reduction="none")
    return each.sum(1) / count(labels).clamp(min=1)


def token_mean(logits, labels):
    """The mean over all tokens of a batch, as torch and Hugging Face define it: ()."""
    return cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)


def language_problem(num_examples=24, *, seed=0, empty=False):
    """Sequences of very different lengths; with `empty` the first is padding alone."""
    generator = torch.Generator().manual_seed(seed)
    size = (num_examples, LENGTH + 1)
    tokens = torch.randint(0, VOCABULARY, size, generator=generator)
    lengths = torch.randint(1, LENGTH + 1, (num_examples,), generator=generator)
    if empty:
        lengths[0] = 0
    labels = tokens[:, 1:].clone()
    labels[torch.arange(LENGTH) >= lengths[:, None]] = -100
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Language().double()
    return Problem(model=model, loss=loss, weights=count, train=Examples(tokens[:, :-1], labels))
