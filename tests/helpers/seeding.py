"""Source of factories that draw their initial parameters in every way there is."""

SOURCE = """
import random

import numpy
import torch
from noisescale import Examples, Problem

def around(model):
    inputs = torch.arange(24.0).reshape(8, 3) / 24
    loss = lambda outputs, targets: (outputs[:, 0] - targets) ** 2
    return Problem(model=model, loss=loss, train=Examples(inputs, inputs.sum(1)))

def drawn():
    return around(torch.nn.Linear(3, 1))

def takes_seed(seed, scale=1.0):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.fill_(seed * scale)
    return around(model)

def seeds_itself():
    torch.manual_seed(7)
    print("made")
    return around(torch.nn.Linear(3, 1))

def seeds_numpy():
    numpy.random.seed(0)
    model = torch.nn.Linear(3, 1)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(numpy.random.randn(1, 3)))
        model.bias.zero_()
    return around(model)

def own_generator():
    model = torch.nn.Linear(3, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for param in model.parameters():
            param.copy_(torch.randn(param.shape, generator=generator))
    return around(model)

def nothing():
    pass

class Model(torch.nn.Linear):
    def __init__(self):
        super().__init__(3, 1)

class Made:
    def __call__(self):
        return drawn()

made = Made()
short = lambda: drawn()

def keyword(*, seed):
    return takes_seed(seed)

def anything(*arguments, **settings):
    return drawn()

def two(first, second):
    pass
"""
