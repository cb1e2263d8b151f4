"""Sources of modules with factories of problems; of those in the first all but one are wrong."""

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

DATASETS = """
import torch
from torch import nn
from torch.utils.data import DataLoader
from noisescale import Problem

class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        row = torch.linspace(-1, 1, 4) * (index % 5) + 0.1 * torch.randn(4)
        return {"input": row[: 2 + index % 3], "label": index % 3}

def padded(items):
    rows = [item["input"] for item in items]
    rows = [torch.cat([row, torch.zeros(4 - len(row))]) for row in rows]
    return {"input": torch.stack(rows), "label": torch.tensor([item["label"] for item in items])}

def make_problem():
    loss = nn.CrossEntropyLoss(reduction="none")
    data = DataLoader(Augmented(), collate_fn=padded)
    return Problem(model=nn.Linear(4, 3), loss=loss, train=data)
"""
