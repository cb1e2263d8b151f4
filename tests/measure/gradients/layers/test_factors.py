"""Norms, sums and inner products of factored gradients against the gradients written out."""

import itertools

import pytest
import torch
from torch import nn

from noisescale.measure.gradients.layers import factors, summaries
from noisescale.measure.gradients.layers.factors import (
    Convolved,
    Dense,
    Outer,
    Pulled,
    Rows,
)
from noisescale.measure.gradients.layers.summaries import project_all, summarise

BATCH, ROWS, COLUMNS = 5, 11, 9


def outer(places, *, groups=1):
    left = torch.randn(BATCH, groups, places, ROWS, dtype=torch.float64)
    right = torch.randn(BATCH, groups, places, COLUMNS, dtype=torch.float64)
    return Outer(left, right, torch.Size([groups * ROWS, COLUMNS]))


def rows(places):
    index = torch.randint(0, ROWS, (BATCH, places))
    values = torch.randn(BATCH, places, COLUMNS, dtype=torch.float64)
    return Rows(index, values, torch.Size([ROWS, COLUMNS]))


def dense():
    return Dense(torch.randn(BATCH, ROWS, COLUMNS, dtype=torch.float64))


def by_hand(piece):
    """Σ_s left ⊗ right, element by element."""
    if isinstance(piece, Dense):
        return piece.values
    gradient = torch.zeros(BATCH, *piece.shape, dtype=torch.float64)
    if isinstance(piece, Rows):
        for example, place in itertools.product(range(BATCH), range(piece.index.shape[1])):
            gradient[example, piece.index[example, place]] += piece.values[example, place]
        return gradient
    _, groups, places, _ = piece.right.shape
    for example, group, place in itertools.product(range(BATCH), range(groups), range(places)):
        gradient[example, group * ROWS : (group + 1) * ROWS] += torch.outer(
            piece.left[example, group, place], piece.right[example, group, place]
        )
    return gradient


CASES = {
    "one place": [outer(1)],
    "one place, groups": [outer(1, groups=3)],
    "few places": [outer(3)],
    "many places": [outer(40)],
    "few places, groups": [outer(2, groups=3)],
    "many places, groups": [outer(40, groups=2)],
    "indices": [rows(6)],
    "many indices": [rows(60)],
    "indices and products, tied": [rows(2), outer(1)],
    "indices and products, many places": [rows(30), outer(28)],
    "indices twice": [rows(4), rows(3)],
    "used three times": [outer(1), outer(1), outer(2)],
    "with one written out": [outer(2), dense()],
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("written", [2**22, 1])  # all at once; a row or an example at a time
@pytest.mark.parametrize("writing", [0, 24, 10**6])  # written out, as is quicker, by Gram matrices
def test_norms_sums_and_projections_are_those_of_the_whole(name, written, writing, monkeypatch):
    pieces = CASES[name]
    monkeypatch.setattr(factors, "WRITTEN", written)
    monkeypatch.setattr(summaries, "WRITING", writing)
    total = sum(map(by_hand, pieces))
    direction = torch.randn(total.shape[1:], dtype=torch.float64)
    weights = torch.rand(total.shape[1:], dtype=torch.float64)
    summary = summarise(pieces)
    torch.testing.assert_close(summary.squared_norms, total.square().sum((1, 2)))
    torch.testing.assert_close(summary.total, total.sum(0))
    weighted = summarise(pieces, weights)
    torch.testing.assert_close(weighted.weighted, (total.square() * weights).sum((1, 2)))
    torch.testing.assert_close(weighted.squared_norms, summary.squared_norms)
    assert summary.weighted is None
    torch.testing.assert_close(weighted.total, total.sum(0))
    projections = sum(piece.project(direction) for piece in pieces)
    torch.testing.assert_close(projections, (total * direction).sum((1, 2)))
    for piece in pieces:
        torch.testing.assert_close(piece.dense(), by_hand(piece))
        torch.testing.assert_close(piece.total(), by_hand(piece).sum(0))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("num_directions", [1, 2, 5])
@pytest.mark.parametrize("written", [2**22, 1])
def test_several_directions_give_the_projections_on_each(
    name, num_directions, written, monkeypatch
):
    monkeypatch.setattr(factors, "WRITTEN", written)
    for piece in CASES[name]:
        gradients = by_hand(piece)
        directions = torch.randn(num_directions, *gradients.shape[1:], dtype=torch.float64)
        found = project_all(piece, list(directions))
        wanted = torch.einsum("bij,kij->kb", gradients, directions)
        torch.testing.assert_close(found, wanted)


def test_gradients_of_a_transpose_are_those_of_the_matrix():
    piece = outer(3)
    torch.testing.assert_close(piece.transposed().dense(), by_hand(piece).mT)


def test_gradients_are_pulled_back_a_few_examples_at_a_time(monkeypatch):
    monkeypatch.setattr(factors, "WRITTEN", 1)
    taken = []

    def back(gradients):  # of the first row, doubled
        taken.append(len(gradients))
        return 2 * gradients[:, 0]

    piece = outer(3)
    pulled = Pulled([piece], back, torch.Size([COLUMNS]))
    wanted = 2 * by_hand(piece)[:, 0]
    summary = summarise([pulled])
    assert set(taken) == {1}
    torch.testing.assert_close(summary.squared_norms, wanted.square().sum(1))
    torch.testing.assert_close(summary.total, wanted.sum(0))
    torch.testing.assert_close(pulled.total(), wanted.sum(0))
    direction = torch.randn(COLUMNS, dtype=torch.float64)
    torch.testing.assert_close(pulled.project(direction), wanted @ direction)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"dilation": 2}, {"groups": 2}])
def test_patches_give_the_gradients_of_convolutions(axes, options):
    """Two images for each of three examples, against backward passes of their own."""
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](4, 6, 3, bias=False, **options)
    convolution.double()
    images = torch.randn(3, 2, 4, *[7, 6, 5][:axes], dtype=torch.float64)
    outputs = convolution(images.flatten(0, 1))
    gradient = torch.randn(3, 2, *outputs.shape[1:], dtype=torch.float64)
    piece = Convolved(
        images,
        gradient,
        convolution.weight.shape,
        convolution.stride,
        convolution.dilation,
        convolution.groups,
    )
    direction = torch.randn_like(convolution.weight)
    summary = summarise([piece])
    for row in range(3):
        (wanted,) = torch.autograd.grad(convolution(images[row]), convolution.weight, gradient[row])
        torch.testing.assert_close(piece.dense()[row], wanted)
        torch.testing.assert_close(summary.squared_norms[row], wanted.square().sum())
        torch.testing.assert_close(piece.project(direction)[row], (wanted * direction).sum())
    torch.testing.assert_close(summary.total, piece.dense().sum(0))


def test_a_large_matrix_is_written_out_in_blocks_of_rows(monkeypatch):
    monkeypatch.setattr(factors, "WRITTEN", 3 * COLUMNS)
    monkeypatch.setattr(summaries, "WRITING", 0)
    piece = outer(4)
    assert [block.shape[0] for block in piece.blocks()] == [3, 3, 3, 2]
    torch.testing.assert_close(
        summarise([piece]).squared_norms, by_hand(piece).square().sum((1, 2))
    )
