"""A character GPT of 109,000 parameters on a text file of one's own, tiny Shakespeare by default.

TEXT=input.txt noisescale recommend examples/problems/char_gpt.py:make --optimizer adamw --bs 32
"""

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from noisescale import Examples, Problem

TEXT = Path(os.environ.get("TEXT", "input.txt"))
LENGTH, WIDTH, HEADS, LAYERS = 48, 64, 4, 2
NUM_SEQUENCES = 3000


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x):
        batch, length, _ = x.shape
        split = self.qkv(self.norm1(x)).view(batch, length, 3, HEADS, -1)
        q, k, v = split.permute(2, 0, 3, 1, 4)  # (B, heads, T, width/heads) each
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, WIDTH))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class CharGPT(nn.Module):
    def __init__(self, num_characters):
        super().__init__()
        self.token = nn.Embedding(num_characters, WIDTH)
        self.position = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, num_characters)

    def forward(self, characters):  # (B, T) -> (B, T, num_characters)
        positions = torch.arange(characters.shape[1], device=characters.device)
        x = self.token(characters) + self.position(positions.expand_as(characters))
        return self.head(self.norm(self.blocks(x)))


def sequence_loss(outputs, targets):  # the mean over each sequence: (B, T, C), (B, T) -> (B,)
    return F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none").mean(1)


def make():
    text = TEXT.read_text()
    number = {character: index for index, character in enumerate(sorted(set(text)))}
    codes = torch.tensor([number[character] for character in text])
    starts = torch.linspace(0, len(codes) - LENGTH - 1, NUM_SEQUENCES).long()
    pieces = torch.stack([codes[start : start + LENGTH + 1] for start in starts])  # (N, T + 1)
    train = Examples(pieces[:, :-1], pieces[:, 1:])
    return Problem(model=CharGPT(len(number)), loss=sequence_loss, train=train)
