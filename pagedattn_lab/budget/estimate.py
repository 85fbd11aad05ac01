"""A number of bytes together with how sure it is, and where it comes from."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from pagedattn_lab.arithmetic import GIB, UNITS, num_bytes
from pagedattn_lab.hardware import GPUS

MOST_GIB = 1024
"""A plain number above this is no number of GiB: no GPU has as much."""


def memory_of_one_gpu(text: str) -> int:
    """Read a size as :func:`~pagedattn_lab.arithmetic.num_bytes` does, but no plain number that no GPU has in GiB.

    Raises:
        ValueError: no size, or such a number, with the GPUs that may be meant.

    Example:
        >>> memory_of_one_gpu("3090")
        Traceback (most recent call last):
        ValueError: '3090' would be 3,090 GiB: did you mean 'RTX 3090'?
    """
    size, number = num_bytes(text), text.strip()
    if not re.fullmatch(r"[0-9.]+", number) or size <= MOST_GIB * GIB:
        return size
    names = [repr(name) for name in GPUS if number in name]
    meant = f"did you mean {' or '.join(names)}?" if names else f"give its unit, such as {number}MiB"
    raise ValueError(f"{text!r} would be {size / GIB:,.0f} GiB: {meant}")


@dataclass(frozen=True)
class Estimate:
    """A number of bytes that may lie anywhere from ``low`` to ``high``.

    Attributes:
        low: the least it may be.
        high: the most.
        likely: what to count on if one number is asked for.
        exact: whether it follows from what was given, so that the three are one.
        source: where it comes from, in a few words.

    Raises:
        ValueError: the three do not rise, or are called exact and differ.

    Example:
        >>> Estimate.known(5, "counted") + Estimate(1, 4, 2, False, "logged elsewhere")
        Estimate(low=6, high=9, likely=7, exact=False, source='counted + logged elsewhere')
    """

    low: int
    high: int
    likely: int
    exact: bool
    source: str

    def __post_init__(self) -> None:
        """Refuse a range that is none."""
        if not self.low <= self.likely <= self.high:
            raise ValueError(f"{self.low}, {self.likely}, {self.high}: give low, likely and high in rising order")
        if self.exact and self.low != self.high:
            raise ValueError(f"from {self.low} to {self.high}: what is exact is one number")

    @classmethod
    def known(cls, size: int, source: str) -> Estimate:
        """Make one that is exact."""
        return cls(size, size, size, True, source)

    @classmethod
    def printed(cls, text: str, source: str = "as printed") -> Estimate:
        """Read a size as vLLM prints it: rounded to two decimals, so that half a unit of the second stands open.

        Newer versions leave out a zero at the end, so one decimal means two. A size without decimals is taken as it
        stands, and one with more is as sure as its last.

        Raises:
            ValueError: no size.

        Example:
            vLLM prints two decimals of a GiB, which leaves 10 MiB open:

            >>> logged = Estimate.printed("58.11GiB")
            >>> (logged.high - logged.low) // 2**20, logged.exact, Estimate.printed("8GiB").exact
            (10, False, True)
            >>> Estimate.printed("58.1GiB") == Estimate.printed("58.10GiB")
            True
        """
        middle = memory_of_one_gpu(text)
        decimals, unit = re.fullmatch(r"\s*[0-9]*\.?([0-9]*) ?([A-Za-z]*)\s*", text).groups()  # type: ignore[union-attr]
        if not decimals:
            return cls.known(middle, source)
        places = max(2, len(decimals))
        half = Fraction(UNITS[unit.lower()], 2 * 10**places)
        exactly = Fraction(re.search(r"[0-9.]+", text)[0]) * UNITS[unit.lower()]  # type: ignore[index]
        low, high = math.ceil(exactly - half), math.floor(exactly + half)
        return cls(low, high, middle, low == high, f"{source}, to {places} decimals")

    def __add__(self, other: Estimate) -> Estimate:
        """Add two that do not depend on one another."""
        return Estimate(
            self.low + other.low,
            self.high + other.high,
            self.likely + other.likely,
            self.exact and other.exact,
            f"{self.source} + {other.source}",
        )
