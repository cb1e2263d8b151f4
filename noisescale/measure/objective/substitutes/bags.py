"""`torch.nn.functional.embedding_bag` written in operations that have a second derivative."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def embedding_bag(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """The sum, mean or maximum of the rows of each bag: (B, D).

    Args:
        input: rows of the weight, (B, T) for bags of one size, or (T,) with offsets.
        weight: (V, D).
        offsets: where the bags begin in an input (T,).
        max_norm: as in torch; renormalises rows.
        norm_type: of max_norm.
        scale_grad_by_freq: as in torch.
        mode: "sum", "mean" or "max".
        sparse: whether the gradient is sparse; here it never is.
        per_sample_weights: of the rows, in the input's shape, for "sum".
        include_last_offset: whether the last offset is the end.
        padding_idx: a row that does not count.
    """
    sizes = _bag_sizes(input, offsets, include_last_offset=include_last_offset)
    indices = input.flatten().long()
    rows = functional.embedding(
        indices, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq
    )
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.flatten().unsqueeze(1)
    if padding_idx is not None:
        counts = indices != (padding_idx % len(weight))
        bags = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
        rows = rows[counts]
        sizes = torch.bincount(bags[counts], minlength=len(sizes))
    if mode == "max":
        return torch.stack(
            [
                bag.amax(0) if len(bag) else bag.new_zeros(bag.shape[1])
                for bag in rows.split(sizes.tolist())
            ]
        )
    bags = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
    sums = rows.new_zeros(len(sizes), rows.shape[1]).index_add(0, bags, rows)
    return sums / sizes.clamp(min=1).unsqueeze(1) if mode == "mean" else sums


def _bag_sizes(input: Tensor, offsets: Tensor | None, *, include_last_offset: bool) -> Tensor:
    """How many rows each bag has: (B,)."""
    if offsets is None:
        return torch.full(input.shape[:1], input.shape[1], device=input.device)
    if include_last_offset:
        return offsets.diff()
    return torch.cat([offsets, offsets.new_tensor([len(input)])]).diff()
