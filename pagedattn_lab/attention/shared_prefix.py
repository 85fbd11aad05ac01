"""Which sequences of a step begin with the same blocks, told from their page tables alone (chapter 08).

Whoever put them there does not matter: a fork, a beam or a prefix cache. Equal block numbers are equal tokens.

Source: Juravsky et al. 2024, "Hydragen", arXiv 2402.05099, and vLLM's ``vllm/v1/core/sched/scheduler.py``
(``num_common_prefix_blocks``), release 0.33.0, which looks for one prefix of all running requests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SharedPrefix:
    """Sequences of one step whose page tables begin alike.

    Attributes:
        sequences: their rows in the batch, at least two.
        block_ids: the blocks that all their tables begin with, at least one.
    """

    sequences: tuple[int, ...]
    block_ids: tuple[int, ...]

    @property
    def num_blocks_saved(self) -> int:
        """Blocks that need not be read again, if these are read once for all."""
        return (len(self.sequences) - 1) * len(self.block_ids)


def shared_prefixes(tables: Sequence[Sequence[int]], min_blocks: int = 1) -> list[SharedPrefix]:
    """Group sequences by the blocks that they begin with, so that as few blocks as possible are read twice.

    Each sequence goes into one group at most, with a longer prefix for a few or a shorter one for many, whichever
    saves more in all.

    Args:
        tables: for each sequence the blocks that may be shared: those that end before its first query token.
        min_blocks: smallest saving, in blocks, that makes a group.

    Example:
        Three sequences share blocks 5 and 6; the fourth begins alone.

        >>> for prefix in shared_prefixes([[5, 6, 7], [5, 6], [9, 6], [5, 6, 8]]):
        ...     print(prefix.sequences, prefix.block_ids, prefix.num_blocks_saved)
        (0, 1, 3) (5, 6) 4
    """
    seen: dict[tuple[tuple[int, ...], int], Parted] = {}

    def best(rows: tuple[int, ...], price: int) -> Parted:
        """Part sequences that begin alike, where one left over saves ``price`` blocks in a group of shorter prefix."""
        if (rows, price) not in seen:
            # Between the first and the last of sorted lists lie all others: what those two share, all share.
            one, other = min(tables[row] for row in rows), max(tables[row] for row in rows)
            depth = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), len(one))
            groups, alone = branches(rows, depth, price=depth)
            if len(alone) > 1:
                groups, alone = [*groups, SharedPrefix(tuple(sorted(alone)), tuple(one[:depth]))], []
            ways = [(groups, alone), branches(rows, depth, price)]
            seen[rows, price] = max(ways, key=lambda way: saved(way[0]) + price * len(way[1]))
        return seen[rows, price]

    def branches(rows: Sequence[int], depth: int, price: int) -> Parted:
        """Part sequences by their block at ``depth``, each branch as is best for it."""
        by_block: dict[int | None, list[int]] = defaultdict(list)
        for row in rows:
            by_block[tables[row][depth] if len(tables[row]) > depth else None].append(row)
        groups: list[SharedPrefix] = []
        alone = by_block.pop(None, [])
        for branch in by_block.values():
            more, left = best(tuple(branch), price) if len(branch) > 1 else ([], branch)
            groups, alone = groups + more, alone + left
        return groups, alone

    groups, _ = branches(range(len(tables)), 0, price=0)
    return [prefix for prefix in groups if prefix.num_blocks_saved >= min_blocks]


Parted = tuple[list[SharedPrefix], list[int]]
"""Groups, and the sequences that are in none."""


def saved(groups: Sequence[SharedPrefix]) -> int:
    """Blocks that groups save together.

    Example:
        >>> saved([SharedPrefix((0, 1, 2), (7, 8)), SharedPrefix((3, 4), (9,))])
        5
    """
    return sum(group.num_blocks_saved for group in groups)
