"""How much of what a test could draw it draws: all of it, or a part where the environment asks for one, in daily work.

``make check`` asks for a quarter of Hypothesis' examples with ``TESTS_DRAW_ONE_IN=4``, and gets what it can of lists;
``make test`` asks for nothing, and has all.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import product
from typing import Any

ONE_IN = int(os.environ.get("TESTS_DRAW_ONE_IN") or 1)
FEWEST = 5  # a test that draws less than this draws all in daily work too


def drawn(examples: int) -> int:
    """Return how many of a property's examples to draw now, which is what ``max_examples`` is to be."""
    return max(min(examples, FEWEST), -(-examples // ONE_IN))


def pairwise(first: Sequence[Any], second: Sequence[Any], third: Sequence[Any]) -> list[tuple[Any, Any, Any]]:
    """Return all combinations; in daily work those that have each pair of two values in one of them at least.

    The first two lists must be at least as long as the third.
    """
    assert min(len(first), len(second)) >= len(third)
    if ONE_IN == 1:
        return list(product(first, second, third))
    return [(x, y, third[(i + j) % len(third)]) for i, x in enumerate(first) for j, y in enumerate(second)]
