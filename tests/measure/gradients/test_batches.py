"""Batches of anything, each kind against a loop over single items."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from noisescale import (
    Examples,
    Problem,
    ggn_matvec,
    gradient_moments,
    hessian_matvec,
    measure_noise,
)
from noisescale.errors import DataError, MeasurementError, SettingError
from tests.helpers.datasets import Items, scales, single_gradients

N = 12
IMAGES = torch.linspace(-1, 1, N * 16).view(N, 1, 4, 4).double().sin()
TABLES = torch.linspace(0, 9, N * 5).view(N, 5).double().cos()
CLASSES = torch.arange(N) % 3
ce = nn.CrossEntropyLoss(reduction="none")


class TwoInputs(nn.Module):
    """Of an image and a table, by position or by name."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.table = nn.Linear(5, 4)
        self.head = nn.Linear(12, 3)

    def forward(self, image, table):
        features = torch.cat([self.conv(image).flatten(1), self.table(table)], 1)
        return self.head(features.tanh())


@dataclass
class Output:
    logits: torch.Tensor
    other: int = 3


class Wrapped(nn.Module):
    """Returns what it is told to make of the logits."""

    def __init__(self, make):
        super().__init__()
        self.inner = TwoInputs()
        self.make = make

    def forward(self, image, table):
        return self.make(self.inner(image, table))


def check(model, data, *, loss=ce, single=None, **options):
    """Against backward passes of single examples: norms, mean, losses and the noise scale."""

    def of_one(index):
        rows = slice(index, index + 1)
        return ce(model(IMAGES[rows], TABLES[rows]), CLASSES[rows])

    wanted = single_gradients(model, [(single or of_one)(index) for index in range(N)])
    problem = Problem(model=model, loss=loss, train=data)
    found = gradient_moments(problem, **options)
    mean = torch.cat([part.flatten() for part in found.mean.values()])
    torch.testing.assert_close(mean, wanted.mean(0), rtol=1e-10, atol=1e-12)
    norms = wanted.square().sum(1).numpy()
    np.testing.assert_allclose(found.squared_norms.sum(1), norms, rtol=1e-10)
    noise = measure_noise(problem, **options)
    squared_norm, variance = scales(wanted)
    assert noise.squared_gradient_norm.value == pytest.approx(squared_norm, rel=1e-9)
    assert noise.gradient_variance.value == pytest.approx(variance, rel=1e-9)


SEVERAL = {
    "tuple": Examples((IMAGES, TABLES), CLASSES),
    "list": Examples([IMAGES, TABLES], CLASSES),
    "dict": Examples({"table": TABLES, "image": IMAGES}, CLASSES),
    "TensorDataset": TensorDataset(IMAGES, TABLES, CLASSES),
    "triples": Items(lambda i: (IMAGES[i], TABLES[i], CLASSES[i])),
    "nested pairs": Items(lambda i: ((IMAGES[i], TABLES[i]), CLASSES[i])),
    "dict and target": Items(lambda i: ({"image": IMAGES[i], "table": TABLES[i]}, CLASSES[i])),
    "one dict": Items(lambda i: {"image": IMAGES[i], "label": CLASSES[i], "table": TABLES[i]}),
    "arrays, numbers": Items(
        lambda i: {"image": IMAGES[i].numpy(), "table": TABLES[i].numpy(), "y": int(CLASSES[i])}
    ),
    "list of items": [(IMAGES[i], TABLES[i], CLASSES[i]) for i in range(N)],
    "DataLoader": DataLoader(TensorDataset(IMAGES, TABLES, CLASSES), batch_size=5, shuffle=True),
    "collated Examples": DataLoader(
        Items(lambda i: i),
        collate_fn=lambda rows: Examples((IMAGES[rows], TABLES[rows]), CLASSES[rows]),
    ),
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_inputs_of_every_kind(kind):
    check(TwoInputs().double(), SEVERAL[kind], chunk_size=5)


@pytest.mark.parametrize("engine", ["hooks", "vmap"])
@pytest.mark.parametrize("kind", ["tuple", "dict", "one dict"])
def test_every_engine_takes_trees(kind, engine):
    check(TwoInputs().double(), SEVERAL[kind], engine=engine)


@pytest.mark.parametrize(
    ("make", "take"),
    [
        (lambda logits: (logits, 0), lambda outputs: outputs[0]),
        (lambda logits: {"logits": logits}, lambda outputs: outputs["logits"]),
        (Output, lambda outputs: outputs.logits),
    ],
    ids=["tuple", "dict", "dataclass"],
)
def test_what_the_model_returns_goes_to_the_loss(make, take):
    model = Wrapped(make).double()

    def single(index):
        rows = slice(index, index + 1)
        return ce(model.inner(IMAGES[rows], TABLES[rows]), CLASSES[rows])

    def loss(outputs, targets):
        return ce(take(outputs), targets["class"])

    check(model, Examples((IMAGES, TABLES), {"class": CLASSES}), loss=loss, single=single)


class Tokens(nn.Module):
    """A masked mean of embeddings; what is padded does not count."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids, mask):
        kept = self.embed(ids) * mask.unsqueeze(-1)
        return self.head(kept.sum(1) / mask.sum(1, keepdim=True))


def padded(items):
    """Sequences filled up to the longest of these."""
    ids = nn.utils.rnn.pad_sequence([ids for ids, _ in items], batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones(len(ids)) for ids, _ in items], batch_first=True)
    return {"ids": ids, "mask": mask.double(), "labels": torch.tensor([y for _, y in items])}


@pytest.mark.parametrize("chunk_size", [1, 5, None])
def test_ragged_data_by_a_collate_function(chunk_size):
    sequences = [torch.arange(1, 3 + index % 6) for index in range(N)]
    model = Tokens().double()
    data = DataLoader(Items(lambda i: (sequences[i], i % 3)), batch_size=2, collate_fn=padded)

    def single(index):
        logits = model.head(model.embed(sequences[index]).mean(0))
        return F.cross_entropy(logits, torch.tensor(index % 3))

    check(model, data, single=single, chunk_size=chunk_size)


def test_ragged_data_say_that_they_want_a_collate_function():
    data = Items(lambda i: (torch.zeros(i + 1), 0))
    with pytest.raises(DataError, match=r"shapes \(1,\) and \(4,\) at \[0\]: .* collate_fn"):
        gradient_moments(Problem(model=nn.Linear(3, 1), loss=ce, train=data))


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (lambda i: (torch.zeros(5), "cat"), r"an item holds a str at \[1\]: turn it into a tensor"),
        (lambda i: (torch.zeros(5), None), r"an item holds None at \[1\]"),
        (lambda i: {"x": object(), "y": 1}, r"an item holds an object at \['x'\]"),
        (lambda i: torch.zeros(5), "holds an input and no target"),
        (lambda i: {"x": torch.zeros(5)}, "holds a dict of x: .* target as one of labels"),
        (lambda i: {"y": torch.zeros(5)}, "a dict of y: give the inputs by name"),
        (lambda i: (torch.zeros(5), [0] * (i + 1)), "items hold .* values: .* collate_fn"),
    ],
)
def test_items_that_cannot_be_used_are_described(item, message):
    with pytest.raises(DataError, match=message) as caught:
        gradient_moments(Problem(model=nn.Linear(5, 3), loss=ce, train=Items(item)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("collate", "message"),
    [
        (lambda items: {}["missing"], "collate function fails on 4 items: KeyError: 'missing'"),
        (lambda items: None, r"collate function returns None: give a pair \(inputs, targets\)"),
        (lambda items: (TABLES[:4], ["a"] * 4), r"collate function returns a str at \[1\]\[0\]"),
        (lambda items: (TABLES.T, CLASSES), r"4 items make a batch of shapes \[\(5, 12\), \(12,\)"),
    ],
)
def test_what_a_collate_function_does_wrong_is_said(collate, message):
    data = DataLoader(Items(lambda i: (TABLES[i], CLASSES[i])), collate_fn=collate)
    with pytest.raises(DataError, match=message):
        gradient_moments(Problem(model=nn.Linear(5, 3), loss=ce, train=data))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Examples(TABLES, None), "targets of Examples hold None: give targets"),
        (Examples(TABLES.numpy(), CLASSES), "inputs of Examples hold a numpy.ndarray"),
        (Examples(TABLES.tolist(), CLASSES), "inputs of Examples hold a float: give tensors"),
        (Examples(TABLES, torch.tensor(1.0)), r"targets of Examples have shapes \(\)"),
        (Examples((TABLES, IMAGES[:3]), CLASSES), "the same in all"),
        (Examples({0: TABLES}, CLASSES), "dict with the keys 0: give names"),
        ((TABLES, CLASSES), r"type tuple: give noisescale.Examples\(inputs, targets\)"),
        ([TABLES, CLASSES], r"type list: give noisescale.Examples\(inputs, targets\)"),
        ({"x": TABLES}, r"type dict: give noisescale.Examples\(inputs, targets\)"),
        (TABLES, "type Tensor: give noisescale.Examples"),
        ("mnist", "type str"),
        (iter([1]), "type list_iterator"),
    ],
)
def test_data_of_the_wrong_kind_are_refused(data, message):
    with pytest.raises(SettingError, match=message):
        gradient_moments(Problem(model=nn.Linear(5, 3), loss=ce, train=data))


def test_a_model_or_loss_of_the_wrong_kind_is_refused():
    data = Examples(TABLES, CLASSES)
    with pytest.raises(SettingError, match="a function as model: its model must be"):
        Problem(model=lambda inputs: inputs, loss=ce, train=data)
    with pytest.raises(SettingError, match=r"a str as loss: .* one loss for each example"):
        Problem(model=nn.Linear(5, 3), loss="mse", train=data)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (TABLES[:, :3], r"inputs of shape \(4, 3\) .* cannot be multiplied"),
        ((TABLES, TABLES), r"shape \[\(4, 5\), \(4, 5\)\] .* takes 2 positional arguments"),
        ({"x": TABLES}, r"shape \{x: \(4, 5\)\} .* unexpected keyword argument 'x'"),
    ],
)
def test_inputs_that_do_not_go_with_the_model_are_named(inputs, message):
    problem = Problem(model=nn.Linear(5, 3).double(), loss=ce, train=Examples(inputs, CLASSES))
    with pytest.raises(MeasurementError, match=message):
        measure_noise(problem)


def test_a_loss_that_cannot_take_what_the_model_returns_is_told_what_it_is():
    model = Wrapped(Output).double()
    problem = Problem(model=model, loss=ce, train=SEVERAL["tuple"])
    with pytest.raises(MeasurementError, match=r"Output: .* given it as it is: take from it"):
        measure_noise(problem)


@pytest.mark.parametrize("kind", SEVERAL)
@pytest.mark.parametrize("product", [hessian_matvec, ggn_matvec])
def test_curvature_of_data_of_every_kind(product, kind):
    model = TwoInputs().double()
    problem = Problem(model=model, loss=ce, train=SEVERAL[kind])
    tensors = Problem(model=model, loss=ce, train=SEVERAL["tuple"])
    vector = torch.linspace(-1, 1, sum(param.numel() for param in model.parameters())).double()
    wanted = product(tensors)(vector)
    torch.testing.assert_close(product(problem)(vector), wanted, rtol=1e-10, atol=1e-12)
    given = product(tensors, examples=SEVERAL[kind])(vector)
    torch.testing.assert_close(given, wanted, rtol=1e-10, atol=1e-12)


def test_classes_of_a_data_set_that_is_read_as_needed():
    model = nn.Linear(5, 3).double()
    data = Items(lambda i: (TABLES[i], int(CLASSES[i])))
    streamed = measure_noise(Problem(model=model, loss=ce, train=data), per_class=True)
    tensors = measure_noise(
        Problem(model=model, loss=ce, train=Examples(TABLES, CLASSES)), per_class=True
    )
    assert streamed.per_class.equals(tensors.per_class)
    assert streamed.top_examples.equals(tensors.top_examples)


def test_b_noise_of_a_data_set_that_is_read_as_needed():
    model = nn.Linear(5, 3).double()
    data = Items(lambda i: (TABLES[i], int(CLASSES[i])))
    streamed, tensors = [
        measure_noise(Problem(model=model, loss=ce, train=train), hessian=True, num_examples=10)
        for train in (data, Examples(TABLES, CLASSES))
    ]
    one, other = streamed.curvature.covariance_trace, tensors.curvature.covariance_trace
    assert one.value == pytest.approx(other.value, rel=1e-9)


@pytest.mark.parametrize(
    ("loss", "outputs", "message"),
    [
        (nn.BCEWithLogitsLoss(reduction="none"), 3, r"shape \(4, 3\) .* losses.flatten\(1\).sum"),
        (lambda o, y: (o - y[:, 0]) ** 2, 1, r"shape \(4, 4\) .* targets \(B,\) broadcast"),
        (lambda o, y: (o - y).mean(), 1, 'as reduction="none" does'),
        (lambda o, y: [1.0], 1, "gives a list for 4 examples"),
    ],
)
def test_losses_of_another_shape_are_told_what_to_do(loss, outputs, message):
    problem = Problem(
        model=nn.Linear(5, outputs).double(), loss=loss, train=Examples(TABLES, TABLES[:, :outputs])
    )
    with pytest.raises(MeasurementError, match=message):
        measure_noise(problem)
