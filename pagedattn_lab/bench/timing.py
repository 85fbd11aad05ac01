"""What the benchmarks share: a clock, no garbage collection, sizes that take turns, medians and quartiles."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median, quantiles
from typing import Any

CLOCK = "CPU time of the process, garbage collection off"
clock = time.process_time_ns


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector out, and put it back as it was, whatever happens.

    Example:
        >>> before = gc.isenabled()
        >>> with no_collection():
        ...     gc.isenabled()
        False
        >>> gc.isenabled() == before
        True
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def nanoseconds(work: Callable[..., int], *arguments: Any) -> float:
    """CPU time per unit of what ``work`` says that it did."""
    start = clock()
    done = work(*arguments)
    return (clock() - start) / done


def turns(sizes: Sequence[int], repetition: int) -> list[int]:
    """Give all sizes, each time another one first.

    Example:
        >>> [turns([1, 2, 3], repetition) for repetition in range(4)]
        [[1, 2, 3], [2, 3, 1], [3, 1, 2], [1, 2, 3]]
    """
    first = repetition % len(sizes)
    return [*sizes[first:], *sizes[:first]]


def check_rising(name: str, sizes: Sequence[int], repetitions: int) -> None:
    """Refuse what gives no medians and quartiles, size by size.

    Raises:
        ValueError: no size, sizes that do not rise from 1 or more, or fewer than 2 repetitions.
    """
    if not sizes or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
        raise ValueError(f"{name} {list(sizes)}: give at least one, all above 0, in ascending order")
    if repetitions < 2:
        raise ValueError(f"repetitions is {repetitions}: give at least 2 repetitions")


def summary(values: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Give the median of each row of values, and under ``..._quartiles`` its lower and upper quartile.

    Example:
        >>> summary({"ns": [1, 9, 2]})
        {'ns': 2, 'ns_quartiles': [1.5, 5.5]}
    """
    result: dict[str, Any] = {}
    for name, row in values.items():
        low, _, high = quantiles(row, n=4, method="inclusive")
        result[name] = median(row)
        result[f"{name}_quartiles"] = [low, high]
    return result
