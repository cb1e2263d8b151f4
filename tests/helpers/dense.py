"""Dense matrices, by plain autograd of a model's own parameters: oracles for their products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def dense_hessian(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], params: list[Tensor] | None = None
) -> Tensor:
    """The Hessian of loss(model) in its trainable parameters, a double backward pass a row.

    A complex parameter counts as its real and imaginary parts, side by side.
    """
    if params is None:
        params = [param for param in model.parameters() if param.requires_grad]
    with sdpa_kernel(SDPBackend.MATH):  # fused kernels have no second derivative
        gradient = _flat(
            torch.autograd.grad(loss(model), params, create_graph=True, materialize_grads=True)
        )
        rows = [
            torch.autograd.grad(entry, params, retain_graph=True, materialize_grads=True)
            for entry in gradient
            if entry.requires_grad
        ]
    assert len(rows) == len(gradient), "some parameters have a gradient that is constant"
    return torch.stack([_flat(row).detach() for row in rows])


def finite_hessian(
    model: nn.Module, loss: Callable[[nn.Module], Tensor], step: float = 1e-5
) -> Tensor:
    """The same by central differences of the gradient, for which it need only be right once."""
    params = [param for param in model.parameters() if param.requires_grad]

    def gradient() -> Tensor:
        return _flat(torch.autograd.grad(loss(model), params, materialize_grads=True)).detach()

    rows = []
    for param in params:
        entries = (torch.view_as_real(param.data) if param.is_complex() else param.data).view(-1)
        for index in range(len(entries)):
            value = entries[index].item()
            ends = []
            for moved in (value + step, value - step):
                entries[index] = moved
                ends.append(gradient())
            entries[index] = value
            rows.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(rows)


def matrix_of(matvec: Any) -> Tensor:
    """The matrix (P, P) of an operator, a product a column."""
    identity = torch.eye(matvec.dim, dtype=matvec.dtype)
    return torch.stack([matvec(unit) for unit in identity])


def largest_eigenvalue(matrix: Tensor) -> float:
    """λ_max of a symmetric matrix."""
    return float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[-1])


def _flat(parts: Any) -> Tensor:
    return torch.cat(
        [
            (torch.stack((part.real, part.imag), -1) if part.is_complex() else part).flatten()
            for part in parts
        ]
    )
