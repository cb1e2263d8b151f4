"""A symmetric matrix known by its products, and the space of vectors that it acts on."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from noisescale.errors import SettingError
from noisescale.problems.problem import MatVec


@runtime_checkable
class Operator(Protocol):
    """A function v -> Hv, (P,) -> (P,), that knows its space, as `CurvatureProduct` does."""

    @property
    def dim(self) -> int:
        """P, the length of its vectors."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype its products are computed in."""

    @property
    def device(self) -> torch.device:
        """The device its products are computed on."""

    def __call__(self, vector: Tensor, /) -> Tensor:
        """The product Hv (P,) with v (P,)."""


class Space(NamedTuple):
    """The vectors that a matrix acts on: their length P, their dtype and their device."""

    dim: int
    dtype: torch.dtype
    device: torch.device

    def normal(self, generator: torch.Generator) -> Tensor:
        """A standard normal vector (P,), drawn on the CPU: the same on every device."""
        return torch.randn(self.dim, generator=generator, dtype=self.dtype).to(self.device)

    def signs(self, generator: torch.Generator) -> Tensor:
        """A vector (P,) of independent random signs ±1, drawn on the CPU."""
        bits = torch.randint(2, (self.dim,), generator=generator)
        return (2.0 * bits - 1).to(device=self.device, dtype=self.dtype)


def space_of(
    matvec: MatVec,
    *,
    dim: int | None,
    dtype: torch.dtype | None,
    device: torch.device | str | None,
) -> Space:
    """The space that `matvec` acts on: an operator's own, a bare function's as described.

    Args:
        matvec: an `Operator`, or any function (P,) -> (P,).
        dim: P; needed for a bare function.
        dtype: None: the operator's own, float32 for a bare function.
        device: None: the operator's own, the CPU for a bare function.

    Raises:
        SettingError: a bare function without dim, or an operator described as what it is not.
    """
    if not isinstance(matvec, Operator):
        if dim is None:
            raise SettingError(
                "a bare function does not say how long its vectors are: give dim, or an operator "
                "that knows it, such as hessian_matvec(problem)"
            )
        return Space(dim, dtype or torch.float32, torch.device(device or "cpu"))
    space = Space(matvec.dim, matvec.dtype, matvec.device)
    if dim is not None and dim != space.dim:
        raise SettingError(f"dim {dim}: this operator has P = {space.dim}; leave dim out")
    if dtype is not None and dtype != space.dtype:
        raise SettingError(
            f"dtype {dtype}: this operator computes in {space.dtype}; leave dtype out, "
            "or build the operator in the dtype you want"
        )
    if device is not None and not _agree(torch.device(device), space.device):
        raise SettingError(
            f"device {device}: this operator computes on {space.device}; leave device out"
        )
    return space


def _agree(given: torch.device, actual: torch.device) -> bool:
    """Whether the devices may be the same one: "cuda" without a number stands for any GPU."""
    return given.type == actual.type and given.index in (None, actual.index)
