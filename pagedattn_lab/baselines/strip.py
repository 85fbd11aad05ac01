"""One strip of memory, and two ways to find a place in it: first fit, and a buddy system (chapter 02).

A strip is the whole *arena*; the part of it that one request has is a *region*. Both are counted in *slots*, each of
which takes one token's keys and values.

Source: Knuth, *The Art of Computer Programming*, volume 1, section 2.5.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import NamedTuple

from pagedattn_lab.arithmetic import at_least_one


class Region(NamedTuple):
    """Slots ``start`` to ``start + size - 1`` of a strip."""

    start: int
    size: int


class FirstFit:
    """A strip whose gaps are kept in the order of their addresses; a request gets the start of the first that fits.

    The rest of the gap stays free (splitting); a region that is released joins the gaps beside it (coalescing).

    Args:
        num_slots: length of the strip.

    Raises:
        ValueError: ``num_slots`` below 1.

    Example:
        >>> strip = FirstFit(16)
        >>> first, second, third = (strip.allocate(size) for size in (4, 8, 4))
        >>> strip.release(first)
        >>> strip.release(third)
        >>> strip.gaps, strip.allocate(8)      # 8 slots are free, and nowhere 8 in a row
        ([Region(start=0, size=4), Region(start=12, size=4)], None)
        >>> strip.release(second)
        >>> strip.gaps
        [Region(start=0, size=16)]
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = at_least_one("num_slots", num_slots)
        self.gaps = [Region(0, num_slots)]
        self.taken: dict[int, int] = {}  # size by start

    @staticmethod
    def rounded(size: int) -> int:
        """How many slots a request for ``size`` takes: as many."""
        return size

    @property
    def longest_possible(self) -> int:
        """The longest region that an empty strip can give."""
        return self.num_slots

    def allocate(self, size: int) -> Region | None:
        """Take a region of ``size`` slots, or ``None``, and nothing has changed, if no gap is that long.

        Raises:
            ValueError: ``size`` below 1.
        """
        at_least_one("size", size)
        for index, gap in enumerate(self.gaps):
            if gap.size >= size:
                rest = Region(gap.start + size, gap.size - size)
                self.gaps[index : index + 1] = [rest] if rest.size else []
                self.taken[gap.start] = size
                return Region(gap.start, size)
        return None

    def release(self, region: Region) -> None:
        """Give a region back.

        Raises:
            ValueError: the strip has not handed this region out, or has it back already.
        """
        _take_back(self.taken, region)
        start, end = region.start, region.start + region.size
        index = bisect_left(self.gaps, region)
        last = index
        if last < len(self.gaps) and self.gaps[last].start == end:
            end += self.gaps[last].size
            last += 1
        if index and sum(self.gaps[index - 1]) == start:
            index -= 1
            start = self.gaps[index].start
        self.gaps[index:last] = [Region(start, end - start)]

    def unusable(self, size: int) -> int:
        """Slots in gaps too short for a request of ``size`` slots."""
        return sum(gap.size for gap in self.gaps if gap.size < size)


class Buddy:
    """A strip that hands out regions of 1, 2, 4, 8 ... slots, each at a multiple of its size.

    A request is rounded up to such a size. If no region of it is free, a larger one is cut into halves, the two
    *buddies*; a region that is released joins its buddy again as soon as both are free. Finding the buddy needs no
    search: its address differs in one bit. A strip whose length is no power of two begins as several regions, the
    longest first.

    Args:
        num_slots: length of the strip.

    Raises:
        ValueError: ``num_slots`` below 1.

    Example:
        >>> strip = Buddy(16)
        >>> strip.allocate(5), strip.allocate(2)     # 5 slots take 8
        (Region(start=0, size=8), Region(start=8, size=2))
        >>> strip.gaps
        [Region(start=10, size=2), Region(start=12, size=4)]
        >>> strip.release(Region(8, 2))
        >>> strip.gaps
        [Region(start=8, size=8)]
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = at_least_one("num_slots", num_slots)
        self.taken: dict[int, int] = {}  # size by start
        self._starts: dict[int, list[int]] = {1 << order: [] for order in range(num_slots.bit_length())}
        start = 0
        for size in reversed(self._starts):
            if num_slots & size:
                self._starts[size].append(start)
                start += size

    @staticmethod
    def rounded(size: int) -> int:
        """How many slots a request for ``size`` takes: the next power of two."""
        return 1 << (size - 1).bit_length()

    @property
    def longest_possible(self) -> int:
        """The longest region that an empty strip can give."""
        return max(self._starts)

    @property
    def gaps(self) -> list[Region]:
        """The free regions, in the order of their addresses. Neighbours that are not buddies stay apart."""
        return sorted(Region(start, size) for size, starts in self._starts.items() for start in starts)

    def allocate(self, size: int) -> Region | None:
        """Take a region of at least ``size`` slots, or ``None``, and nothing has changed, if none is that long.

        Raises:
            ValueError: ``size`` below 1.
        """
        size = self.rounded(at_least_one("size", size))
        found = next((larger for larger, starts in self._starts.items() if larger >= size and starts), None)
        if found is None:
            return None
        start = self._starts[found].pop(0)
        while found > size:  # keep the lower half, free the upper one
            found //= 2
            insort(self._starts[found], start + found)
        self.taken[start] = size
        return Region(start, size)

    def release(self, region: Region) -> None:
        """Give a region back.

        Raises:
            ValueError: the strip has not handed this region out, or has it back already.
        """
        _take_back(self.taken, region)
        start, size = region
        while (starts := self._starts.get(size)) is not None:
            index = bisect_left(starts, start ^ size)
            if index == len(starts) or starts[index] != start ^ size:
                insort(starts, start)
                return
            del starts[index]
            start, size = start & ~size, 2 * size

    def unusable(self, size: int) -> int:
        """Slots in gaps too short for a request of ``size`` slots."""
        return sum(gap * len(starts) for gap, starts in self._starts.items() if gap < size)


def _take_back(taken: dict[int, int], region: Region) -> None:
    """Strike a region off those in use."""
    if taken.get(region.start) != region.size:
        raise ValueError(f"{region} is not in use: it was released before, or never handed out by this strip")
    del taken[region.start]
