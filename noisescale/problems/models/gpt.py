"""A small decoder-only transformer of the GPT kind, for next-symbol prediction."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisescale.errors import SettingError, check_memory

INITIAL_STD = 0.02  # GPT-2's, of weights and embeddings: logits begin near zero, tied or not


class _Block(nn.Module):
    """Causal self-attention, then two layers, each behind a layer norm and added to its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:  # (B, T, W) -> (B, T, W)
        heads = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # (B, heads, T, W/heads) each
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        hidden: Tensor = x + self.down(F.gelu(self.up(self.norm2(x))))
        return hidden


class GPT(nn.Module):
    """Symbols (B, T) -> logits of each next one (B, T, C), from those up to it; see `gpt`.

    Args:
        num_symbols: C.
        context: the largest T.
        width: W, of the embeddings.
        depth: how many blocks.
        heads: of each block's attention, a divisor of the width.
        tied: whether the last layer's weight is the symbols' embedding.
    """

    def __init__(
        self, num_symbols: int, context: int, *, width: int, depth: int, heads: int, tied: bool
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(num_symbols, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(_Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_symbols, bias=False)
        if tied:
            self.head.weight = self.token.weight
        for name, param in self.named_parameters():
            if param.ndim == 2:
                # what is added to the stream 2·depth times is drawn smaller, so that the sum is not
                is_added = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(
                    param, std=INITIAL_STD / math.sqrt(2 * depth) if is_added else INITIAL_STD
                )
            elif name.endswith("bias"):
                nn.init.zeros_(param)

    def forward(self, symbols: Tensor) -> Tensor:
        """The logits of the symbol after each: (B, T) -> (B, T, C)."""
        positions = torch.arange(symbols.shape[1], device=symbols.device)
        x = self.token(symbols) + self.position(positions.expand_as(symbols))
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def gpt(
    num_symbols: int,
    *,
    context: int = 64,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    tied: bool = False,
) -> GPT:
    """A pre-norm transformer for next-symbol prediction, with GPT-2's initialisation.

    Learned positions, depth blocks of causal self-attention and a GELU network four times as wide,
    each behind a layer norm and added to its input; a last layer norm and a linear layer. No
    dropout. Weights and embeddings are normal of standard deviation .02, those that end a branch
    .02/√(2·depth), biases zero (Radford et al. 2019).

    Args:
        num_symbols: C, the size of the vocabulary.
        context: T, the length of the longest sequence.
        width: of the embeddings.
        depth: how many blocks.
        heads: of the attention; a divisor of the width.
        tied: whether the last layer shares the symbols' embedding.

    Returns:
        A model of symbols (B, T) -> logits (B, T, C), those at t from the symbols up to t.

    Raises:
        SettingError: heads that do not divide the width.
        NotEnoughMemoryError: more weights than the memory holds.

    Examples:
        >>> import torch
        >>> from noisescale import gpt
        >>> model = gpt(65, width=32, depth=2)
        >>> model(torch.zeros(3, 64, dtype=torch.int64)).shape
        torch.Size([3, 64, 65])
    """
    if width % heads:
        raise SettingError(
            f"heads {heads} of a gpt of width {width}: give a number that divides the width"
        )
    weights = (num_symbols * (1 if tied else 2) + context + 12 * width * depth) * width
    bytes_each = 4  # of float32
    check_memory(
        bytes_each * weights,
        f"a gpt of width {width:,} and depth {depth:,} has {weights:,} weights or more",
    )
    return GPT(num_symbols, context, width=width, depth=depth, heads=heads, tied=tied)
