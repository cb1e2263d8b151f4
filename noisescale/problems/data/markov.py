"""A text that needs no file: a Markov source, the same everywhere, whose entropy is known."""

from __future__ import annotations

from bisect import bisect
from functools import lru_cache

import numpy as np

NUM_SYMBOLS = 27  # as many as the letters and the space
NUM_CHARACTERS = 400_000  # some 5,600 training sequences of 64, made in half a second
# Range of the logits. At 5 the entropy of a character is 4.71 bits, 3.83 given the last one and
# 2.98 given the last two: a model that attends to either, and to both, is seen to gain by it.
LOGIT_RANGE = 5.0
SEED = 0  # of the source; its text has the next one


@lru_cache(maxsize=1)
def transition_probabilities() -> np.ndarray:
    """P(next | last two): (27, 27, 27), by the one before the last, the last, and the next.

    The softmax over the next of U[before, next] + V[last, next], with U and V uniform in [0, 5): so
    few numbers that a small model can learn them from the text.
    """
    # of all numpy's generators, the one whose numbers are promised never to change
    first, second = LOGIT_RANGE * np.random.RandomState(SEED).random_sample(
        (2, NUM_SYMBOLS, NUM_SYMBOLS)
    )
    weights = np.exp(first[:, None] + second[None])
    probabilities: np.ndarray = weights / weights.sum(2, keepdims=True)
    return probabilities


@lru_cache(maxsize=1)
def entropy_rate() -> float:
    """The entropy of a character given all before it, in bits: no model's loss is lower.

    −Σ π(a, b) P(c | a, b) log₂ P(c | a, b) under the stationary π of pairs (Cover and Thomas 2006,
    eq. 4.27); 2.978.
    """
    transitions = transition_probabilities()
    pairs = np.full((NUM_SYMBOLS, NUM_SYMBOLS), NUM_SYMBOLS**-2.0)  # (before, last)
    for _ in range(200):  # all probabilities are above 0: a few tens of steps suffice
        pairs = np.einsum("ab,abc->bc", pairs, transitions)
    return float(-np.sum(pairs[..., None] * transitions * np.log2(transitions)))


@lru_cache(maxsize=1)
def markov_codes() -> np.ndarray:
    """The text, as numbers 0…26 (400,000,), uint8."""
    draws = np.random.RandomState(SEED + 1).random_sample(NUM_CHARACTERS).tolist()
    cumulated = transition_probabilities().cumsum(2)
    cumulated[..., -1] = 1.0  # which rounding may leave below a draw
    rows = cumulated.reshape(-1, NUM_SYMBOLS).tolist()  # of each pair
    codes = np.empty(NUM_CHARACTERS, dtype=np.uint8)
    pair = 0
    for position, draw in enumerate(draws):
        code = bisect(rows[pair], draw)
        codes[position] = code
        pair = NUM_SYMBOLS * (pair % NUM_SYMBOLS) + code
    return codes
