"""Parameters that a model uses itself, outside of a layer: positions, scales, tokens, gates."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from noisescale import gradient_moments
from noisescale.measure.gradients.hooks import _is_part
from noisescale.problems.models import cross_entropy
from noisescale.problems.problem import Examples, Problem

NUM_EXAMPLES, LENGTH, WIDTH = 20, 5, 4
Use = Callable[[torch.Tensor, nn.Parameter], torch.Tensor]


class Using(nn.Module):
    """A layer, what `use` makes of its output and a parameter, the mean and another layer."""

    def __init__(self, shape: tuple[int, ...], use: Use) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 2)
        self.own = nn.Parameter(0.5 * torch.randn(shape))
        self.use = use

    def forward(self, inputs):
        return self.last(self.use(self.first(inputs), self.own).mean(1))


def shifts():
    positions = torch.arange(LENGTH)
    return positions[:, None] - positions + LENGTH - 1


# (B, T, D) hidden values h and a parameter p -> (B, ·, D)
USES: dict[str, tuple[tuple[int, ...], Use]] = {
    "positions": ((LENGTH, WIDTH), lambda h, p: h + p),
    "positions, sliced": ((9, WIDTH), lambda h, p: h + p[: h.shape[1]]),
    "positions, sliced in a batch": ((1, 9, WIDTH), lambda h, p: h + p[:, : h.shape[1]]),
    "every second position": ((2 * LENGTH, WIDTH), lambda h, p: h + p[::2]),
    "positions by number": ((9, WIDTH), lambda h, p: h + p[torch.arange(h.shape[1])]),
    "overlapping positions": ((9,), lambda h, p: h + p.unfold(0, WIDTH, 1)[:LENGTH]),
    "rows by example": ((9, WIDTH), lambda h, p: h + p[(3 * h[..., 0]).long().clamp(-9, 8)]),
    "scale of a layer": ((WIDTH,), lambda h, p: p * h),
    "temperature": ((), lambda h, p: h * p.exp()),
    "rotary": ((LENGTH, WIDTH), lambda h, p: h * p.cos() + h.flip(-1) * p.sin()),
    "class token": ((1, 1, WIDTH), lambda h, p: torch.cat([p.expand(len(h), -1, -1), h], 1)),
    "class token, broadcast": (
        (1, 1, WIDTH),
        lambda h, p: torch.cat([torch.broadcast_to(p, (len(h), 1, WIDTH)), h], 1),
    ),
    "mask token": ((WIDTH,), lambda h, p: torch.where(h[..., :1] > 0, p.expand_as(h), h)),
    "divided": ((WIDTH,), lambda h, p: h / (2 + p)),
    "divides": ((WIDTH,), lambda h, p: p / (2 + h.tanh())),
    "power": ((), lambda h, p: h.exp() ** p),
    "in place": ((LENGTH, WIDTH), lambda h, p: h.clone().mul_(p)),
    "mixed": ((WIDTH,), lambda h, p: torch.lerp(h, h.tanh(), p)),
    "added product": ((WIDTH,), lambda h, p: torch.addcmul(h, h.tanh(), p)),
    "larger of two": ((WIDTH,), lambda h, p: torch.maximum(h, p)),
    "clamped": ((WIDTH,), lambda h, p: torch.clamp(h, min=p - 1)),
    "mixing of places": ((LENGTH, LENGTH), lambda h, p: p @ h),
    "queries": ((2, WIDTH), lambda h, p: (p @ h.mT).softmax(-1) @ h),
    "bias of attention": (
        (2 * LENGTH - 1,),
        lambda h, p: (h @ h.mT + p[shifts()]).softmax(-1) @ h,
    ),
    "weight of unit rows": (
        (WIDTH, WIDTH),
        lambda h, p: F.linear(h, p / p.norm(dim=1, keepdim=True)),
    ),
}


def problem_of(shape, use):
    torch.manual_seed(0)
    model = Using(shape, use).double()
    inputs = torch.randn(NUM_EXAMPLES, LENGTH, 3, dtype=torch.float64)
    targets = torch.randint(2, (NUM_EXAMPLES,))
    return Problem(model=model, loss=cross_entropy, train=Examples(inputs, targets))


@pytest.mark.parametrize("name", USES)
def test_they_are_reached_without_the_whole_models_gradients(name):
    problem = problem_of(*USES[name])
    found = gradient_moments(problem, engine="hooks", chunk_size=7)
    assert (found.engine, found.notes) == ("hooks", ())
    wanted = gradient_moments(problem, engine="loop")
    np.testing.assert_allclose(found.squared_norms, wanted.squared_norms, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(
        found.projections.sum(1),
        wanted.projections.reshape(NUM_EXAMPLES, -1).sum(1),
        rtol=1e-9,
        atol=1e-14,
    )


def test_what_is_not_reached_says_what_would_be():
    problem = problem_of((LENGTH, LENGTH), lambda h, p: torch.einsum("btd,ts->bsd", h, p))
    (note,) = gradient_moments(problem, engine="hooks").notes
    assert note.startswith("own: used in an operation that no rule covers (sums, products, ")
    assert "nn.Embedding" in note
    assert note.endswith("by gradients of the whole model, through vmap")


def test_parts_of_a_leaf_are_views_of_each_number_once():
    leaf = torch.randn(6, 4, requires_grad=True)
    for part in (leaf[:2], leaf[1::2], leaf.T, leaf[:, None, 2], leaf.view(24), leaf[3, 1:]):
        assert _is_part(part, leaf)
    for other in (leaf * 1, leaf.clone(), leaf[:1].expand(5, 4), leaf[0].unfold(0, 2, 1)):
        assert not _is_part(other, leaf)
    assert not _is_part(leaf[:2], torch.randn(6, 4, requires_grad=True))
