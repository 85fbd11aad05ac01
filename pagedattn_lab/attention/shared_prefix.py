"""Which sequences of a step begin with the same blocks, told from their page tables alone (chapter 08).

Whoever put them there does not matter: a fork, a beam or a prefix cache. Equal block numbers are equal tokens.

Source: Juravsky et al. 2024, "Hydragen", arXiv 2402.05099, and vLLM's ``vllm/v1/core/sched/scheduler.py``
(``num_common_prefix_blocks``), release 0.33.0, which looks for one prefix of all running requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class SharedPrefix:
    """Sequences of one step whose page tables begin alike.

    Attributes:
        sequences: their rows in the batch, in ascending order.
        block_ids: the blocks that all their tables begin with, at least one.
    """

    sequences: tuple[int, ...]
    block_ids: tuple[int, ...]

    @property
    def num_blocks_saved(self) -> int:
        """Blocks that need not be read again, if these are read once for all."""
        return (len(self.sequences) - 1) * len(self.block_ids)


def shared_prefixes(tables: Sequence[Sequence[int]], min_sequences: int = 2, min_blocks: int = 1) -> list[SharedPrefix]:
    """Group sequences by the blocks that they begin with: first the group that saves most, then among the rest.

    Sorted, tables that begin alike are neighbours, and a group is a run of neighbours. It shares as many blocks as the
    least that two neighbours in it share. So what it saves is an area, and the best group the largest rectangle under
    these numbers.

    Args:
        tables: for each sequence the blocks that may be shared: those that end before its first query token.
        min_sequences: smallest group, at least 2.
        min_blocks: smallest saving, in blocks, that makes a group.

    Example:
        Three sequences share blocks 5 and 6; the fourth begins alone.

        >>> for prefix in shared_prefixes([[5, 6, 7], [5, 6], [9, 6], [5, 6, 8]]):
        ...     print(prefix.sequences, prefix.block_ids, prefix.num_blocks_saved)
        (0, 1, 3) (5, 6) 4
    """
    order = sorted(range(len(tables)), key=tables.__getitem__)
    in_common = [_num_in_common(tables[one], tables[next_one]) for one, next_one in pairwise(order)]
    groups, waiting = [], [(0, len(order))]  # runs of sorted sequences that may hold a group
    while waiting:
        begin, end = waiting.pop()
        saved, first, last = _largest(in_common, begin, end, min_sequences)
        if saved < max(1, min_blocks):
            continue
        depth = min(in_common[first : last - 1])
        groups.append(SharedPrefix(tuple(sorted(order[first:last])), tuple(tables[order[first]][:depth])))
        waiting += [(last, end), (begin, first)]
    return groups


def _num_in_common(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the blocks that two tables begin with in common, by halving: comparing slices is fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _largest(in_common: Sequence[int], begin: int, end: int, min_sequences: int) -> tuple[int, int, int]:
    """Find the run of sorted sequences from ``begin`` to ``end`` that saves most.

    Returns:
        What it saves, its first sequence, and the one after its last.
    """
    best = (0, begin, begin)
    rising: list[tuple[int, int]] = []  # (first sequence, blocks in common) of runs that still go on
    for place in range(begin, end):
        depth = in_common[place] if place < end - 1 else 0  # with the next sequence
        first = place
        while rising and rising[-1][1] >= depth:  # here a run of more blocks in common ends, with this sequence
            first, shared = rising.pop()
            if place + 1 - first >= min_sequences:
                best = max(best, ((place - first) * shared, first, place + 1))
        rising.append((first, depth))
    return best
