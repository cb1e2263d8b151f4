"""Norms and inner products of factored gradients against the gradients written out."""

import itertools

import pytest
import torch

from noisescale.measure.gradients.factors import Outer, projections, squared_norms

BATCH, ROWS, COLUMNS = 5, 11, 9


def outer(places, *, groups=1, indexed=False):
    right = torch.randn(BATCH, groups, places, COLUMNS, dtype=torch.float64)
    if indexed:
        left = torch.randint(0, ROWS, (BATCH, groups, places))
    else:
        left = torch.randn(BATCH, groups, places, ROWS, dtype=torch.float64)
    return Outer(left, right, torch.Size([groups * ROWS, COLUMNS]))


def by_hand(piece):
    """Σ_s left ⊗ right, element by element."""
    gradient = torch.zeros(BATCH, *piece.shape, dtype=torch.float64)
    batch, groups, places, _ = piece.right.shape
    for example, group, place in itertools.product(range(batch), range(groups), range(places)):
        left = piece.left[example, group, place]
        if piece.left.ndim == 3:
            left = torch.eye(ROWS, dtype=torch.float64)[left]
        gradient[example, group * ROWS : (group + 1) * ROWS] += torch.outer(
            left, piece.right[example, group, place]
        )
    return gradient


CASES = {
    "one place": [outer(1)],
    "few places, by Gram": [outer(3)],
    "many places, written out": [outer(9)],
    "groups": [outer(2, groups=3)],
    "many places, groups": [outer(7, groups=2)],
    "indices": [outer(6, indexed=True)],
    "indices and dense, tied": [outer(1, indexed=True), outer(1)],
    "indices and dense, many places": [outer(9, indexed=True), outer(8)],
    "indices twice": [outer(4, indexed=True), outer(3, indexed=True)],
    "used three times": [outer(1), outer(1), outer(2)],
    "with one written out": [outer(2), torch.randn(BATCH, ROWS, COLUMNS, dtype=torch.float64)],
}


@pytest.mark.parametrize("name", CASES)
def test_norms_and_projections_are_those_of_the_sum(name, monkeypatch):
    pieces = CASES[name]
    total = sum(by_hand(piece) if isinstance(piece, Outer) else piece for piece in pieces)
    direction = torch.randn(total.shape[1:], dtype=torch.float64)
    for limit in (2**26, 1):  # all at once, and example by example
        monkeypatch.setattr("noisescale.measure.gradients.factors.TEMPORARY_BYTES", limit)
        torch.testing.assert_close(squared_norms(pieces), total.square().sum((1, 2)))
    torch.testing.assert_close(projections(pieces, direction), (total * direction).sum((1, 2)))
    for piece in pieces:
        if isinstance(piece, Outer):
            torch.testing.assert_close(piece.dense(), by_hand(piece))
