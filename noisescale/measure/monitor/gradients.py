"""The gradients that a monitor watches: their squared norms, and what was done to them between."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate

from noisescale.errors import MeasurementError
from noisescale.measure.monitor.groups import Groups
from noisescale.measure.monitor.live_preconditioner import LivePreconditioner, under

# Numbers of which a product is taken by one thread, and in float32 without loss
ONE_THREAD = 2**16


def squared_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Σ|g|² of tensors, float64, without waiting for it; 0 of none."""
    gradients = list(gradients)
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    return squared_norms(gradients, [0] * len(gradients), 1)[0]


def squared_norms(gradients: Sequence[Tensor], groups: Sequence[int], num_groups: int) -> Tensor:
    """Σ|g|² (G,) of tensors by the group that each belongs to, float64, without waiting for it.

    On the device of the first tensor; others' numbers are sent there.
    """
    device = gradients[0].device
    squares: list[Tensor] = []
    members: list[int] = []
    on_accelerators: dict[torch.device, tuple[list[Tensor], list[int]]] = {}
    for gradient, group in zip(gradients, groups, strict=True):
        values = _values(gradient)
        if values.device.type == "cpu":
            parts = _squares(values)
            squares += parts
            members += [group] * len(parts)
        else:
            tensors, places = on_accelerators.setdefault(values.device, ([], []))
            tensors.append(values)
            places.append(group)
    for tensors, places in on_accelerators.values():
        # one kernel over many tensors: a launch for each takes longer than the norms of small ones
        norms = torch._foreach_norm(tensors, 2, dtype=torch.float64)
        squares.append(torch.stack(norms).square())
        members += places
    flat = torch.cat([square.reshape(-1).to(device) for square in squares])
    if num_groups == 1:
        return flat.sum()[None]
    return flat.new_zeros(num_groups).index_add_(0, _index(tuple(members), device), flat)  # (G,)


@lru_cache(maxsize=64)  # a copy to a GPU waits for it
def _index(members: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(members, device=device)


def _own_part(gradient: Tensor, num_processes: int) -> tuple[Tensor, int]:
    """This process's part of a gradient, and how many processes hold the same."""
    if not isinstance(gradient, DTensor):
        return gradient, num_processes
    if any(isinstance(placement, Partial) for placement in gradient.placements):
        gradient = gradient.redistribute(  # sums that are still to be added up
            placements=[
                Replicate() if isinstance(placement, Partial) else placement
                for placement in gradient.placements
            ]
        )
    copies = 1
    for dimension, placement in enumerate(gradient.placements):
        copies *= gradient.device_mesh.size(dimension) if isinstance(placement, Replicate) else 1
    return local(gradient), copies


def local(gradient: Tensor) -> Tensor:
    """This process's part of a sharded gradient; another as it is."""
    if not isinstance(gradient, DTensor):
        return gradient
    with torch.no_grad():
        part: Tensor = gradient.to_local()
        return part


def _squares(values: Tensor) -> list[Tensor]:
    """|values|² in parts, float64, on a CPU."""
    if values.dtype not in (torch.float32, torch.float64):
        return [torch.linalg.vector_norm(values, dtype=torch.float64).square()]
    # By one thread: those of the backward pass go on spinning for a while after it, and a second
    # team of threads waits for them longer than the norm takes (12 ms against 0.4 ms, 2 cores).
    return [torch.dot(part, part).double() for part in values.reshape(-1).split(ONE_THREAD)]


def _values(gradient: Tensor) -> Tensor:
    """A dense gradient, or a sparse one's values, repeated rows added up, as real numbers."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return torch.view_as_real(values.resolve_conj()) if values.is_complex() else values


class Gradients:
    """The gradients of the parameters that require one now, and their state after the last look.

    groups: of the parameters.
    preconditioner: under which norms are taken; None: plain ones.
    num_processes: that one model is spread over, each of which holds all of some gradients and
        parts of others.
    """

    def __init__(self, groups: Groups, preconditioner: LivePreconditioner | None = None) -> None:
        self.groups = groups
        self._preconditioner = preconditioner
        self.num_processes = 1
        # by parameter: which tensor its gradient is, and how often that has been written to
        self._seen: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._trained: tuple[int, ...] = ()
        self._witness: tuple[Tensor, Tensor] | None = None  # a scaled gradient, and a copy of it

    def squared_norms(self) -> Tensor:
        """(G,), of the groups; MeasurementError where no parameter has a gradient.

        Where the model is spread over processes, this one's share, of which the sum is meant.
        """
        gradients = self._existing()
        if not gradients:
            raise MeasurementError(
                "no parameter has a gradient: call this after backward(), before zero_grad()"
            )
        roots: Sequence[Tensor | None] = [None] * len(gradients)
        if self._preconditioner is not None:
            roots = self._preconditioner.roots([self.groups.parameters[at] for at in gradients])
        by_copies: dict[int, tuple[list[Tensor], list[int]]] = {}
        for (place, gradient), root in zip(gradients.items(), roots, strict=True):
            part, copies = _own_part(gradient, self.num_processes)
            tensors, members = by_copies.setdefault(copies, ([], []))
            tensors.append(under(None if root is None else local(root), part))
            members.append(self.groups.of[place])
        squares = [
            squared_norms(tensors, members, len(self.groups.names)) / copies
            for copies, (tensors, members) in by_copies.items()
        ]
        return torch.stack(squares).sum(0)

    def remember(self, *, scaled: bool) -> None:
        """Takes note of what the gradients are now.

        scaled: whether they hold a factor, to be taken out by what leaves no trace in the versions.
        """
        gradients = self._existing()
        self._seen = {
            place: (weakref.ref(gradient), local(gradient)._version)
            for place, gradient in gradients.items()
        }
        self._trained = self._requiring()
        dense = [local(one) for one in gradients.values() if not one.is_sparse]
        self._witness = None
        if scaled and dense:
            smallest = min(dense, key=Tensor.numel)
            self._witness = smallest, smallest.clone()

    @property
    def unchanged(self) -> bool:
        """Whether the gradients are what they were, to the last bit."""
        now = self._existing()
        return (
            now.keys() == self._seen.keys()
            and all(
                now[place] is which() and local(now[place])._version == version
                for place, (which, version) in self._seen.items()
            )
            and not self._differ()
        )

    @property
    def still_scaled(self) -> bool:
        """Whether a gradient of which a copy was taken still holds its factor; False of none."""
        return (
            self._witness is not None
            and not self._differ()
            and bool(self._witness[1].isfinite().all() and self._witness[1].count_nonzero())
        )

    @property
    def since(self) -> Literal["added to", "new", "mixed"]:
        """What became of the gradients of the last look.

        "added to": they are the same tensors, of the same parameters. "new": none of them is there
        any more, as after zero_grad(). "mixed": some are, or other parameters require a gradient.
        """
        now = self._existing()
        seen = {place: which() for place, (which, _) in self._seen.items()}
        kept = [one is not None and now.get(place) is one for place, one in seen.items()]
        if all(kept) and self._requiring() == self._trained:
            return "added to"
        return "mixed" if any(kept) else "new"

    def _differ(self) -> bool:
        """Whether a gradient is not what its copy is; two nan, as of an overflow, are equal."""
        return self._witness is not None and not torch.allclose(
            *self._witness, rtol=0, atol=0, equal_nan=True
        )

    def _existing(self) -> dict[int, Tensor]:
        """By the parameter's place; a gradient left behind by a parameter frozen since is none."""
        return {
            place: parameter.grad
            for place, parameter in enumerate(self.groups.parameters)
            if parameter.requires_grad and parameter.grad is not None
        }

    def _requiring(self) -> tuple[int, ...]:
        return tuple(
            place
            for place, parameter in enumerate(self.groups.parameters)
            if parameter.requires_grad
        )
