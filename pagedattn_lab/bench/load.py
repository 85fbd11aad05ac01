"""The requests that the benchmarks serve: short, ragged, the same every time."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import cycle

BLOCK_SIZE = 16
"""Tokens per block."""

LONGEST_PROMPT, LONGEST_OUTPUT = 80, 160
"""Most tokens of a request: 64 of them at once, 15 blocks each, fit the smallest pool, so nobody is ever refused."""


def lengths(seed: int = 0) -> Iterator[tuple[int, int]]:
    """Give pairs of prompt and output length without end, evenly spread, a thousand of them again and again.

    Example:
        >>> next(lengths())
        (31, 9)
    """
    rng = random.Random(f"bench {seed}")
    return cycle([(rng.randint(1, LONGEST_PROMPT), rng.randint(2, LONGEST_OUTPUT)) for _ in range(1_000)])
