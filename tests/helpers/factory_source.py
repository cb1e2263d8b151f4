"""Source of a module with factories of problems, of which all but the first are wrong."""

SOURCE = """
import torch
from noisescale import Examples, Problem

def make_problem():
    examples = Examples(torch.randn(8, 3), torch.zeros(8))
    loss = lambda outputs, targets: (outputs[:, 0] - targets) ** 2
    return Problem(model=torch.nn.Linear(3, 1), loss=loss, train=examples)

def fails():
    raise FileNotFoundError("no data in /nowhere")

def returns_a_model():
    return torch.nn.Linear(3, 1)

def takes_arguments(path):
    pass

def exits():
    raise SystemExit(3)

def no_model():
    return Problem(model=3, loss=None, train=None)

constant = 3
"""
